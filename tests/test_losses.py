"""Corners of the losses where a gradient is easily lost, or divided by nothing."""

import pytest
import torch

from manualnn import functional as ours
from manualnn.elementwise import BLOCK

theirs = torch.nn.functional


def both(compute):
    """What compute(F) gives for our functionals and for torch's."""
    results = []
    for F in (ours, theirs):
        torch.manual_seed(0)
        results.append(compute(F))
    return results


def assert_same(mine, other):
    torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 5, 3), (1, 3, 2, 2)], ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("create_graph", [False, True])
def test_every_row_ignored(shape, smoothing, weighted, create_graph):
    """The mean is 0/0, its gradient 0: one such batch must not poison a training."""
    classes = shape[0] if len(shape) == 1 else shape[1]

    def gradient(F):
        z = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        y = torch.full(() if len(shape) == 1 else (shape[0], *shape[2:]), -100)
        w = torch.rand(classes, dtype=torch.float64) if weighted else None
        loss = F.cross_entropy(z, y, w, label_smoothing=smoothing)
        assert loss.isnan()
        grads = torch.autograd.grad(loss, z, create_graph=create_graph)
        if not smoothing:
            nll = F.nll_loss(z, y, w)
            grads += torch.autograd.grad(nll, z, create_graph=create_graph)
        return grads

    for mine, other in zip(*both(gradient), strict=True):
        assert not mine.any()
        assert_same(mine, other)


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 5, 3)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("alone", [False, True])
def test_class_weights_of_probabilities_have_a_gradient(shape, reduction, smoothing, alone):
    def gradient(F):
        z = torch.randn(shape, dtype=torch.float64, requires_grad=not alone)
        y = torch.rand(shape, dtype=torch.float64, requires_grad=not alone)
        w = torch.rand(5, dtype=torch.float64, requires_grad=True)
        loss = F.cross_entropy(z, y, w, reduction=reduction, label_smoothing=smoothing)
        wrt = [w] if alone else [z, y, w]
        first = torch.autograd.grad(loss.square().sum(), wrt, create_graph=True)
        return *first, *torch.autograd.grad(sum(g.square().sum() for g in first), wrt)

    for mine, other in zip(*both(gradient), strict=True):
        assert_same(mine, other)


def test_the_tangent_of_class_weights():
    z, y = torch.randn(4, 5, dtype=torch.float64), torch.rand(4, 5, dtype=torch.float64)
    w, w_dot = torch.rand(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    tangents = [
        torch.func.jvp(lambda w, F=F: F.cross_entropy(z, y, w, label_smoothing=0.1), (w,), (w_dot,))
        for F in (ours, theirs)
    ]
    assert_same(*(tangent for _, tangent in tangents))


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("dims", [1, 2])  # of more dimensions torch refuses them
def test_classes_as_bytes(dims, create_graph):
    def gradient(F):
        z = torch.randn((5,) if dims == 1 else (3, 5), dtype=torch.float64)
        z.requires_grad_()
        y = torch.randint(0, 5, () if dims == 1 else (3,)).to(torch.uint8)
        loss = F.cross_entropy(z, y) + F.nll_loss(z, y)
        return torch.autograd.grad(loss, z, create_graph=create_graph)[0]

    assert_same(*both(gradient))


@pytest.mark.parametrize(
    "call",
    [
        lambda F, z, w: F.nll_loss(z, torch.tensor([0, 1, 2]), w),
        lambda F, z, w: F.nll_loss(z[..., None, None], torch.zeros(3, 1, 1).long(), w),
        lambda F, z, w: F.cross_entropy(z, torch.tensor([0, 1, 2]), w),
        lambda F, z, w: F.binary_cross_entropy(z.sigmoid(), z.detach().sigmoid(), w),
        lambda F, z, w: F.binary_cross_entropy_with_logits(z, z.detach().sigmoid(), w),
        lambda F, z, w: F.binary_cross_entropy_with_logits(z, z.detach().sigmoid(), pos_weight=w),
    ],
)
def test_a_weight_that_cannot_be_learned_is_refused(call):
    messages = []
    for F in (ours, theirs):
        z, w = torch.randn(3, 4, requires_grad=True), torch.rand(4, requires_grad=True)
        with pytest.raises(RuntimeError, match="not differentiable with respect to argument") as e:
            call(F, z, w)
        messages.append(str(e.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("shape", [(1000,), (512, 1), (1, 1), (512, 1000)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("which", ["weight", "pos_weight", "bce weight"])
def test_weights_of_large_tensors(shape, reduction, which):
    """They are broadcast, and large tensors are worked through block by block."""
    size = (512, 1000)
    assert size[0] * size[1] >= 4 * BLOCK

    def gradient(F):
        x = torch.randn(size, dtype=torch.float64, requires_grad=True)
        y, w = torch.rand(size, dtype=torch.float64), torch.rand(shape, dtype=torch.float64)
        y.requires_grad_()
        if which == "bce weight":
            loss = F.binary_cross_entropy(x.sigmoid(), y, w, reduction=reduction)
        else:
            options = {which: w, "reduction": reduction}
            loss = F.binary_cross_entropy_with_logits(x, y, **options)
        return torch.autograd.grad(loss.sum(), (x, y))

    for mine, other in zip(*both(gradient), strict=True):
        assert_same(mine, other)
