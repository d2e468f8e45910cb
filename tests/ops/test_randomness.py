"""Dropout and RReLU draw what torch draws, for the same seed, and remember just what they drew."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from manualnn import convert, nn
from manualnn import functional as ours

theirs = torch.nn.functional

RANDOM = {
    "dropout": lambda F, z: F.dropout(z, 0.3),
    "dropout,p=0.9": lambda F, z: F.dropout(z, 0.9),
    "dropout1d": lambda F, z: F.dropout1d(z.flatten(2), 0.3),
    "dropout2d": lambda F, z: F.dropout2d(z, 0.3),
    "alpha_dropout": lambda F, z: F.alpha_dropout(z, 0.3, training=True),
    "rrelu": lambda F, z: F.rrelu(z, 0.1, 0.4, training=True),
}
IN_PLACE = {
    "dropout": lambda F, z: F.dropout(z, 0.3, inplace=True),
    "dropout1d": lambda F, z: F.dropout1d(z[..., 0], 0.3, inplace=True),
    "dropout2d": lambda F, z: F.dropout2d(z, 0.3, inplace=True),
    "alpha_dropout": lambda F, z: F.alpha_dropout(z, 0.3, training=True, inplace=True),
    "rrelu": lambda F, z: F.rrelu(z, 0.1, 0.4, training=True, inplace=True),
}
each_random = pytest.mark.parametrize("name", RANDOM)
# 3·5·7·11 = 1155 elements: masks of bytes; 4·9·17·13 = 7956: masks of bits, the last byte half full.
SHAPES = [(3, 5, 7, 11), (4, 9, 17, 13)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
LAYOUTS = {
    "contiguous": lambda z: z,
    "channels_last": lambda z: z.contiguous(memory_format=torch.channels_last),
    "transposed": lambda z: z.transpose(2, 3),
    "strided": lambda z: torch.stack((z, z), -1)[..., 0],
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def step(function, F, z, seed=5):
    z = z.detach().clone().requires_grad_()
    torch.manual_seed(seed)
    a = function(F, z * 1)
    d = torch.linspace(-1, 1, a.numel(), dtype=a.dtype).view(a.shape)
    (dz,) = torch.autograd.grad(a, z, d)
    return a.detach(), dz


@each_random
@each_shape
@each_layout
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_numbers_of_torch(name, shape, layout, dtype):
    z = LAYOUTS[layout](torch.randn(shape, dtype=torch.float64).to(dtype))
    mine, my_gradient = step(RANDOM[name], ours, z)
    other, other_gradient = step(RANDOM[name], theirs, z)
    close = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 0.02}[dtype]
    torch.testing.assert_close(mine, other, rtol=close, atol=close)
    torch.testing.assert_close(my_gradient, other_gradient, rtol=close, atol=close)
    assert mine.stride() == other.stride()


@pytest.mark.parametrize("name", IN_PLACE)
@each_shape
def test_in_place(name, shape):
    z = torch.randn(shape, dtype=torch.float64)
    for mine, other in zip(
        step(IN_PLACE[name], ours, z), step(IN_PLACE[name], theirs, z), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)
    changed = z.clone()
    assert IN_PLACE[name](ours, changed).data_ptr() == changed.data_ptr()
    assert not torch.equal(changed, z)


@each_random
def test_the_next_draw_is_torchs_too(name):
    z = torch.randn(SHAPES[0])
    after = []
    for F in (ours, theirs):
        torch.manual_seed(1)
        RANDOM[name](F, z)
        after.append(torch.rand(3))
    assert torch.equal(*after)


@each_random
def test_the_mask_is_not_drawn_again_in_backward(name):
    z = torch.randn(SHAPES[1], dtype=torch.float64, requires_grad=True)
    a = RANDOM[name](ours, z)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    (dz,) = torch.autograd.grad(a.sum(), z)
    assert torch.equal(before, torch.get_rng_state())
    if name != "alpha_dropout":  # which shifts
        slope = (a / z.view_as(a)).view_as(dz)
        torch.testing.assert_close(dz, slope, rtol=1e-12, atol=1e-12)


@each_random
@pytest.mark.parametrize("randomness", ["different", "same"])
def test_under_vmap(name, randomness):
    z = torch.randn(3, 2, 4, 5, 6, dtype=torch.float64)
    if randomness == "same":
        z = z[:1].expand(3, -1, -1, -1, -1)

    def gradient_and_output(F):
        def one(z):
            a = RANDOM[name](F, z)
            return a.square().sum(), a

        torch.manual_seed(2)
        return torch.func.vmap(torch.func.grad(one, has_aux=True), randomness=randomness)(z)

    dz, a = gradient_and_output(ours)
    if randomness == "same":
        assert torch.equal(a[0], a[1]) and torch.equal(a[1], a[2])
    else:
        assert not torch.equal(a[0] / z[0].view_as(a[0]), a[1] / z[1].view_as(a[1]))
    # The same mask in backward as in forward: dz = 2 a ∗ slope.
    if name != "alpha_dropout":
        slope = a / z.reshape(a.shape)
        torch.testing.assert_close(dz.view_as(a), 2 * a * slope, rtol=1e-10, atol=1e-10)
    if name != "rrelu":  # torch has no batching rule for it
        their_dz, their_a = gradient_and_output(theirs)
        torch.testing.assert_close(a, their_a, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(dz, their_dz, rtol=1e-12, atol=1e-12)


@each_random
def test_vmap_refuses_randomness_unless_told(name):
    for F in (ours,) if name == "rrelu" else (ours, theirs):
        with pytest.raises(RuntimeError, match="randomness"):
            torch.func.vmap(lambda z, F=F: RANDOM[name](F, z))(torch.randn(3, 2, 4, 5, 6))


@each_random
def test_compiled_it_drops_a_share_and_its_backward_agrees(name):
    # A compiler draws its own numbers, torch's too: what must hold is that backward uses the same.
    torch.compiler.reset()
    z = torch.randn(8, 8, 16, 16, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(lambda z: RANDOM[name](ours, z), fullgraph=True, backend="aot_eager")
    a = compiled(z)
    (dz,) = torch.autograd.grad(a.sum(), z)
    if name != "alpha_dropout":
        torch.testing.assert_close(dz, (a / z.view_as(a)).view_as(dz), rtol=1e-12, atol=1e-12)
    if name.startswith("dropout"):
        share = (a == 0).double().mean().item()
        assert abs(share - (0.9 if "0.9" in name else 0.3)) < 0.15


@pytest.mark.parametrize("p", [0.0, 1.0])
@pytest.mark.parametrize("name", ["Dropout", "Dropout1d", "Dropout2d", "AlphaDropout"])
def test_all_or_nothing(name, p):
    z = torch.randn(2, 3, 4, dtype=torch.float64)
    z = z[..., None] if name == "Dropout2d" else z
    results = []
    for module in (nn, torch.nn):
        leaf = z.clone().requires_grad_()
        a = getattr(module, name)(p)(leaf)
        a.sum().backward()
        results.append((a.detach(), leaf.grad))
    for mine, other in zip(*results, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("name", ["Dropout", "Dropout1d", "Dropout2d", "AlphaDropout", "RReLU"])
def test_in_eval_mode_nothing_is_random(name):
    z = torch.randn(2, 3, 4, 5) if name == "Dropout2d" else torch.randn(2, 3, 4)
    mine, other = getattr(nn, name)().eval(), getattr(torch.nn, name)().eval()
    torch.testing.assert_close(mine(z), other(z), rtol=0, atol=0)


@pytest.mark.parametrize("keep", ["less", "all"])
def test_rrelu_in_a_checkpoint_remembers_what_it_drew(keep):
    """torch's own keeps memory there that nobody has written: it stops when the last tensor is saved."""
    model = convert(torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.RReLU()), keep=keep)
    x = torch.randn(4, 6)

    def gradients(function):
        torch.manual_seed(1)
        return torch.autograd.grad(function(x).square().sum(), model.parameters())

    drawn = gradients(model)
    for _ in range(20):
        junk = [torch.randn(24) for _ in range(5)]
        del junk
        again = gradients(lambda x: checkpoint(model, x, use_reentrant=False))
        assert all(torch.equal(a, b) for a, b in zip(again, drawn, strict=True))
