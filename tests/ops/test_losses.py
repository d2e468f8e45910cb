"""Corners of the losses where a gradient is easily lost, or divided by nothing."""

import pytest
import torch

from manualnn import functional as ours
from manualnn.autograd.blockwise import BLOCK

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


SPECIAL = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, 1.0, -2.0])
PAIRS = torch.cartesian_prod(SPECIAL, SPECIAL).T
DISTANCES = {
    "mse_loss": {},
    "l1_loss": {},
    "smooth_l1_loss": {},
    "smooth_l1_loss, beta=0": {"beta": 0.0},
    "huber_loss": {},
    "binary_cross_entropy_with_logits": {},
    "binary_cross_entropy_with_logits, pos_weight": {"pos_weight": torch.tensor(1.3)},
    "mse_loss, weight": {"weight": torch.full((36,), 1.3)},
    "huber_loss, weight": {"weight": torch.full((36,), 1.3)},
}


def same_numbers(mine, other):
    torch.testing.assert_close(mine, other, equal_nan=True)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("case", DISTANCES)
def test_nothing_that_is_not_finite_is_hidden(case, reduction):
    """In either input, whichever of them needs a gradient, and when it is to be differentiated again."""
    name, options = case.split(",")[0], DISTANCES[case]
    for needs in ((True, False), (False, True), (True, True)):
        for create_graph in (False, True):
            results = []
            for F in (ours, theirs):
                x, y = (t.clone().requires_grad_(n) for t, n in zip(PAIRS, needs, strict=True))
                loss = getattr(F, name)(x, y, reduction=reduction, **options)
                wrt = [t for t in (x, y) if t.requires_grad]
                grads = torch.autograd.grad(loss.sum(), wrt, create_graph=create_graph)
                results.append([loss, *grads])
            for mine, other in zip(*results, strict=True):
                same_numbers(mine.detach(), other.detach())


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"ignore_index": 1}], ids=str)
@pytest.mark.parametrize("probabilities", [False, True])
def test_cross_entropy_of_scores_that_are_not_finite(probabilities, options):
    if probabilities and "ignore_index" in options:
        options = {
            "weight": torch.tensor([0.5, 2.0, 1.0])
        }  # torch ignores no class of probabilities
    scores = torch.cat([PAIRS, torch.ones(1, 36)]).T
    for create_graph in (False, True):
        results = []
        for F in (ours, theirs):
            z = scores.clone().requires_grad_()
            y = (
                torch.tensor([0.2, 0.3, 0.5]).expand(36, 3)
                if probabilities
                else torch.arange(36) % 3
            )
            loss = F.cross_entropy(z, y, reduction="none", **options)
            results.append([loss, *torch.autograd.grad(loss.sum(), z, create_graph=create_graph)])
        for mine, other in zip(*results, strict=True):
            same_numbers(mine.detach(), other.detach())


REFUSED = {
    "smoothing above 1": (torch.arange(3), {"label_smoothing": 1.5}),
    "a class of probabilities to ignore": (torch.full((3, 3), 1 / 3), {"ignore_index": 1}),
    "a class too many": (torch.tensor([0, 1, 3]), {}),
    "smoothed, a class too many": (torch.tensor([0, 1, 3]), {"label_smoothing": 0.1}),
    "a row too few": (torch.tensor([0, 1]), {}),
    "weights too few": (torch.arange(3), {"weight": torch.ones(2)}),
    "weights of probabilities too few": (torch.full((3, 3), 1 / 3), {"weight": torch.ones(2)}),
    "classes as int32": (torch.arange(3, dtype=torch.int32), {}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_cross_entropy_refuses_what_torch_refuses(case):
    y, options = REFUSED[case]
    said = []
    for F in (ours, theirs):
        with pytest.raises((RuntimeError, IndexError, ValueError)) as refusal:
            F.cross_entropy(torch.randn(3, 3, requires_grad=True), y, **options)
        said.append((refusal.type, str(refusal.value)))
    assert said[0] == said[1]


# --- tangents of weights, weights without a sum, dtypes ------------------------------------------

X = torch.linspace(-2, 2, 20, dtype=torch.float64).cos().view(4, 5)
Y = torch.tensor([0, 3, -100, 1])
W = torch.linspace(0.5, 1.5, 5, dtype=torch.float64)
OF_WEIGHTS = {
    "cross_entropy": lambda w, how, x=X: ours.cross_entropy(x, Y, w, reduction=how),
    "cross_entropy, N = C": lambda w, how, x=X: ours.cross_entropy(
        x[:, :4], Y, w[:4], reduction=how
    ),
    "cross_entropy, smoothed": lambda w, how, x=X: ours.cross_entropy(
        x, Y, w, reduction=how, label_smoothing=0.2
    ),
    "cross_entropy, probabilities": lambda w, how, x=X: ours.cross_entropy(
        x, x.softmax(1), w, reduction=how
    ),
    "nll_loss": lambda w, how, x=X: ours.nll_loss(x.log_softmax(1), Y, w, reduction=how),
    "binary_cross_entropy": lambda w, how, x=X: ours.binary_cross_entropy(
        x.sigmoid(), X.cos().abs(), w, reduction=how
    ),
    "with logits, weight": lambda w, how, x=X: ours.binary_cross_entropy_with_logits(
        x, X.cos().abs(), w, reduction=how, pos_weight=W
    ),
    "with logits, pos_weight": lambda w, how, x=X: ours.binary_cross_entropy_with_logits(
        x, X.cos().abs(), W, reduction=how, pos_weight=w
    ),
}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("loss", OF_WEIGHTS.values(), ids=OF_WEIGHTS)
def test_tangents_of_weights(loss, reduction):
    direction, step = W.flip(0).sin(), 1e-6
    tangent = torch.func.jvp(lambda w: loss(w, reduction), (W,), (direction,))[1]
    beyond, before = (loss(W + s * direction, reduction) for s in (step, -step))
    torch.testing.assert_close(tangent, (beyond - before) / (2 * step), rtol=1e-6, atol=1e-8)
    assert tangent.abs().max() > 1e-3


def penalty(loss, w, how):
    """The square of the gradient by the scores."""
    return torch.func.grad(lambda x: loss(w, how, x).square().sum())(X).square().sum()


BY_WEIGHTS = {
    "grad": lambda loss, w, how: loss(w, how).square().sum(),
    "vmap": lambda loss, w, how: (
        torch.func.vmap(lambda w: loss(w, how))(torch.stack([w, 2 * w])).square().sum()
    ),
    "output of jvp": lambda loss, w, how: (
        torch.func.jvp(lambda w: loss(w, how), (w,), (W,))[0].square().sum()
    ),
    "tangent of jvp": lambda loss, w, how: (
        torch.func.jvp(lambda w, x: loss(w, how, x), (w, X), (W, X.sin()))[1].square().sum()
    ),
    "a squared gradient": penalty,
    "a squared gradient, vmap": lambda loss, w, how: torch.func.vmap(
        lambda w: penalty(loss, w, how)
    )(torch.stack([w, 2 * w])).sum(),
}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("form", BY_WEIGHTS.values(), ids=BY_WEIGHTS)
@pytest.mark.parametrize("loss", OF_WEIGHTS.values(), ids=OF_WEIGHTS)
def test_gradients_by_weights_within_torch_func(loss, form, reduction):
    direction, step = W.flip(0).sin(), 1e-5
    gradient = torch.func.grad(lambda w: form(loss, w, reduction))(W)
    beyond, before = (form(loss, W + s * direction, reduction) for s in (step, -step))
    slope = (beyond - before) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-8)
    assert gradient.abs().max() > 1e-5


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_a_score_that_is_masked_leaves_the_gradient_of_the_weights_finite(name, reduction):
    """What is −∞ and is no true class counts for nothing."""
    x = X.index_fill(1, torch.tensor([2]), -float("inf"))
    x = x if name == "cross_entropy" else x.log_softmax(1)

    def loss(F, w):
        return getattr(F, name)(x, Y, w, reduction=reduction)

    def gradient(F):
        return torch.func.grad(lambda w: torch.func.vmap(lambda w: loss(F, w))(w).sum())(W[None])

    used = torch.tensor([0, 1, 3])  # torch's is NaN for the masked class, ours 0
    torch.testing.assert_close(gradient(ours)[0, used], gradient(theirs)[0, used])
    assert gradient(ours)[0, 2] == 0
    tangent = torch.func.jvp(lambda w: loss(ours, w), (W,), (W.sin(),))[1]
    torch.testing.assert_close(tangent, (gradient(ours)[0] * W.sin()).sum())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    "weights", [[0.0, 0, 1, 1, 1], [1.0, -1, 0, 0, 0]], ids=["no sum", "a sum of zero"]
)
def test_weights_of_no_sum_hide_no_nan(weights, smoothing):
    """The loss is NaN or infinite, and so is its gradient, differentiated again or not."""
    w, y = torch.tensor(weights), torch.tensor([0, 1])
    found = []
    for function, again in ((theirs, False), (ours, False), (ours, True)):
        x = X[:2].float().requires_grad_()
        loss = function.cross_entropy(x, y, w, label_smoothing=smoothing)
        found.append(torch.autograd.grad(loss, x, create_graph=again)[0].detach())
    assert not found[0].isfinite().any()
    for mine in found[1:]:  # ∞ − ∞ or ∞, by the order of the terms
        assert not mine.isfinite().any()


def test_dtypes_under_autocast_of_what_torch_composes():
    x = torch.randn(4, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        for name in ("mse_loss", "l1_loss"):
            dtypes = {getattr(F, name)(x, x + 1, weight=x.abs()).dtype for F in (ours, theirs)}
            assert dtypes == {torch.bfloat16}
        volume = torch.randn(1, 1, 4, 4, 4).bfloat16().requires_grad_()
        for indices in (True, False):
            made = [F.max_pool3d(volume, 2, return_indices=indices) for F in (ours, theirs)]
            mine, other = [m[0] if indices else m for m in made]
            assert mine.dtype is other.dtype


@pytest.mark.parametrize("less", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_targets_that_are_more_precise_than_the_scores(less):
    more = torch.float64 if less is torch.float32 else torch.float32
    found = []
    for function in (ours, theirs):
        z, y = X.to(less).requires_grad_(), X.softmax(1).to(more).requires_grad_()
        loss = function.cross_entropy(z, y, label_smoothing=0.1)
        found.append((loss.detach(), *torch.autograd.grad(loss, (z, y))))
    for mine, other in zip(*found, strict=True):
        assert mine.dtype is other.dtype and torch.equal(mine, other)


def test_no_classes():
    z = torch.randn(3, 0, requires_grad=True)
    assert torch.autograd.grad(ours.cross_entropy(z, torch.rand(3, 0)), z)[0].shape == (3, 0)


@pytest.mark.parametrize("less", [torch.bfloat16, torch.float32], ids=str)
def test_the_gradient_of_a_more_precise_target_is_as_precise(less):
    more = torch.float64 if less is torch.float32 else torch.float32
    found = []
    for function in (ours, theirs):
        z, y = X.to(less), X.softmax(1).to(more).requires_grad_()
        loss = function.binary_cross_entropy_with_logits(z, y, reduction="none")
        found.append(torch.autograd.grad(loss, y, X.sin().to(more))[0])
    assert torch.equal(*found)


@pytest.mark.parametrize("smoothing", [-0.1, -1000.0, float("nan")])
@pytest.mark.parametrize("target", [Y, X.softmax(1)], ids=["classes", "probabilities"])
def test_a_smoothing_that_is_none(smoothing, target):
    losses = [F.cross_entropy(X, target, label_smoothing=smoothing) for F in (ours, theirs)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["mse_loss", "l1_loss", "huber_loss"])
def test_a_weighted_loss_under_autocast_has_torchs_bits(name, dtype):
    torch.manual_seed(0)
    x, y, w = (torch.randn(30, 40).to(dtype) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        mine, other = (getattr(F, name)(x, y, reduction="none", weight=w) for F in (ours, theirs))
    assert mine.dtype is other.dtype and torch.equal(mine, other)


@pytest.mark.parametrize("name", ["mse_loss", "l1_loss", "huber_loss"])
def test_weights_of_another_size(name):
    for x in (torch.arange(3), torch.arange(3.0)):
        for function in (ours, theirs):
            with pytest.raises(ValueError, match="Weights and input must have the same size"):
                getattr(function, name)(x, x * 1.0, weight=torch.ones(2))


def test_whole_numbers_that_are_weighted():
    x, y, w = torch.tensor([3, 5]), torch.tensor([1, 1]), torch.tensor([0.5, 2.0])
    for name in ("mse_loss", "l1_loss"):
        for how in ("mean", "sum", "none"):
            made = [getattr(F, name)(x, y, weight=w, reduction=how) for F in (ours, theirs)]
            assert torch.equal(*made)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(3, 0), (0,)])
def test_no_class_and_every_row_ignored(shape, smoothing):
    y = torch.full(shape[:1] + shape[2:] if len(shape) > 1 else (), -100)
    losses = []
    for f in (torch.nn.functional, ours):
        z = torch.zeros(shape, requires_grad=True)
        loss = f.cross_entropy(z, y, label_smoothing=smoothing, reduction="sum")
        loss.backward()
        losses.append(str((loss.item(), z.grad.shape)))  # NaN is NaN
    assert losses[0] == losses[1]
