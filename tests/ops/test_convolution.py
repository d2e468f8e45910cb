"""Convolution: the formula against the kernel, bits against torch, what is not kept is not read."""

import itertools

import pytest
import torch
from battery import assert_close, formula_and_kernel

from manualnn import functional as F
from manualnn import nn
from manualnn.ops import convolutions as convolution

TF = torch.nn.functional
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def geometries():
    """(dims, batch, in, out, size, kernel, stride, padding, dilation, output_padding, groups)"""
    yield 1, 2, 4, 6, (9,), (3,), (1,), (1,), (1,), (0,), 1
    yield 1, 1, 4, 4, (9,), (2,), (2,), (0,), (3,), (1,), 4
    yield 2, 2, 4, 6, (9, 8), (3, 2), (2, 1), (1, 0), (1, 2), (1, 0), 2
    yield 2, 4, 3, 6, (7, 7), (1, 1), (1, 1), (0, 0), (1, 1), (0, 0), 1
    yield 2, 1, 16, 16, (20, 20), (5, 5), (1, 1), (2, 2), (1, 1), (0, 0), 2
    yield 2, 16, 8, 8, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1), (0, 0), 8
    yield 3, 2, 2, 4, (5, 4, 6), (2, 3, 2), (1, 2, 1), (0, 1, 1), (1, 1, 2), (0, 1, 0), 2


each_geometry = pytest.mark.parametrize("made", list(geometries()), ids=str)
each_way = pytest.mark.parametrize("transposed", [False, True], ids=["", "transposed"])


def tensors(made, transposed, dtype):
    dims, n, c, o, size, kernel, stride, padding, dilation, output_padding, groups = made
    torch.manual_seed(0)
    x = torch.randn(n, c, *size, dtype=torch.float64)
    W = torch.randn(c if transposed else o, (o if transposed else c) // groups, *kernel).double()
    b = torch.randn(o, dtype=torch.float64)
    output_padding = output_padding if transposed else (0,) * dims
    geometry = stride, padding, dilation, transposed, output_padding, groups
    return [t.to(dtype) for t in (x, W, b)], geometry


def applied(x, W, b, geometry):
    stride, padding, dilation, transposed, output_padding, groups = geometry
    numbers = *stride, *padding, *dilation, *output_padding
    return convolution.Convolution.apply(x, W, b, transposed, groups, *numbers)


@each_geometry
@each_way
def test_the_formula_is_what_the_kernel_computes(made, transposed):
    given, geometry = tensors(made, transposed, torch.float64)
    x, W, b = (t.requires_grad_() for t in given)
    z = applied(x, W, b, geometry)
    assert_close(convolution.formula(x, W, b, *geometry), z, torch.float64, 10)
    dz = torch.randn_like(z)
    by_formula, _ = formula_and_kernel(z.grad_fn, dz)
    by_kernel = torch.autograd.grad(z, (x, W, b), dz)
    differentiated = torch.autograd.grad(
        convolution.formula(x, W, b, *geometry), (x, W, b), dz, retain_graph=True
    )
    for kernel, formula, derivative in zip(by_kernel, by_formula, differentiated, strict=False):
        assert_close(formula, kernel, torch.float64, 100)
        assert_close(derivative, kernel, torch.float64, 100)


def laid_out(t, last):
    return t.contiguous(memory_format=LAST[t.dim()]) if last and t.dim() in LAST else t


@each_geometry
@each_way
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_every_bit_is_torchs(made, transposed, dtype):
    """Whatever needs a gradient: the stand-in for what is not kept leads to the same kernel."""
    given, geometry = tensors(made, transposed, dtype)
    for last_x, last_W in {(False, False), (made[0] > 1, False), (False, made[0] > 1)}:
        for needs in itertools.product([False, True], repeat=3):
            if not any(needs):
                continue
            results = []
            for ours in (True, False):
                x, W, b = (t.clone() for t in given)
                x, W = laid_out(x, last_x), laid_out(W, last_W)
                leaves = [t.requires_grad_(n) for t, n in zip((x, W, b), needs, strict=True)]
                z = applied(*leaves, geometry) if ours else torch.convolution(*leaves, *geometry)
                dz = torch.linspace(-1, 2, z.numel()).view(z.shape).to(dtype)
                dz = torch.empty_like(z).copy_(dz)
                wrt = [t for t in leaves if t.requires_grad]
                results.append([z.detach(), *torch.autograd.grad(z, wrt, dz)])
            for mine, other in zip(*results, strict=True):
                assert torch.equal(mine, other) and mine.stride() == other.stride()


@each_geometry
@each_way
def test_what_is_not_kept_is_not_read(made, transposed, monkeypatch):
    """Also not by a second derivative, where the kernel's own is differentiated."""
    given, geometry = tensors(made, transposed, torch.float32)
    seen, unwritten = [], convolution.placeholder

    def of_nothing(dz, shape, stride):
        seen.append(tuple(shape))
        return torch.empty_strided(shape, stride, dtype=dz.dtype).fill_(float("nan"))

    for needs in ((True, False), (False, True)):
        results = []
        for placeholder in (unwritten, of_nothing):
            monkeypatch.setattr(convolution, "placeholder", placeholder)
            x, W, b = (t.clone() for t in given)
            leaf = x.requires_grad_() if needs[0] else W.requires_grad_()
            z = applied(x, W, b.requires_grad_(), geometry)
            dz = torch.linspace(-1, 2, z.numel()).view(z.shape).requires_grad_()
            first = torch.autograd.grad(z, (leaf, b), dz, create_graph=True)
            second = torch.autograd.grad(first[0].square().sum() + first[1].sum(), dz)
            results.append([*first, *second])
        assert all(t.isfinite().all() for t in results[1])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert len(seen) == 2 and seen[0] == tuple(given[0].shape)


def kept(function, *leaves):
    found = {}

    def note(t):
        found[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        out = function(*leaves)
    return [name for name, t in zip("xWb", leaves, strict=False) if t.data_ptr() in found], out


@pytest.mark.parametrize(
    "needs, keeps", [("x", ["W"]), ("W", ["x"]), ("b", []), ("xWb", ["x", "W"])], ids=str
)
def test_keeps_x_only_for_dW_and_W_only_for_dx(needs, keeps):
    shapes = {"x": (2, 4, 6, 6), "W": (4, 2, 3, 3), "b": (4,)}
    leaves = [torch.randn(s).requires_grad_(name in needs) for name, s in shapes.items()]
    found, _ = kept(lambda x, W, b: F.conv2d(x, W, b, padding=1, groups=2), *leaves)
    assert found == keeps
    theirs, _ = kept(lambda x, W, b: TF.conv2d(x, W, b, padding=1, groups=2), *leaves)
    assert theirs == ["x", "W"]


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_padding_modes(mode, dims):
    torch.manual_seed(0)
    args = (2, 4, 3)
    options = {"padding": (2, 1, 2)[:dims], "padding_mode": mode, "groups": 2}
    ours = getattr(nn, f"Conv{dims}d")(*args, **options)
    theirs = getattr(torch.nn, f"Conv{dims}d")(*args, **options)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 2, *(5, 4, 6)[:dims])
    results = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        z = layer(leaf)
        grads = torch.autograd.grad(z.square().sum(), [leaf, *layer.parameters()])
        results.append([z.detach(), *grads])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_transposed_convolution_of_a_size_asked_for(dims):
    torch.manual_seed(0)
    ours = getattr(nn, f"ConvTranspose{dims}d")(2, 3, 3, stride=2, padding=1)
    theirs = getattr(torch.nn, f"ConvTranspose{dims}d")(2, 3, 3, stride=2, padding=1)
    theirs.load_state_dict(ours.state_dict())
    x, size = torch.randn(2, 2, *(3, 4, 2)[:dims]), (6, 7, 4)[:dims]
    assert torch.equal(ours(x, output_size=size), theirs(x, output_size=size))
    for layer in (ours, theirs):
        with pytest.raises(ValueError, match="requested an output size of"):
            layer(x, output_size=(20,) * dims)


BAD = {
    "channels": lambda M: M.conv2d(torch.ones(1, 3, 4, 4), torch.ones(2, 2, 2, 2)),
    "kernel larger than the input": lambda M: M.conv2d(
        torch.ones(1, 2, 2, 2), torch.ones(2, 2, 3, 3)
    ),
    "groups": lambda M: M.conv1d(torch.ones(1, 3, 4), torch.ones(2, 1, 2), groups=2),
    "bias": lambda M: M.conv1d(torch.ones(1, 2, 4), torch.ones(2, 2, 2), torch.ones(3)),
    "stride": lambda M: M.conv1d(torch.ones(1, 2, 4), torch.ones(2, 2, 2), stride=0),
    "strides": lambda M: M.conv2d(torch.ones(1, 2, 4, 4), torch.ones(2, 2, 2, 2), stride=(1, 1, 1)),
    "fraction": lambda M: M.conv1d(torch.ones(1, 2, 4), torch.ones(2, 2, 2), stride=1.5),
    "negative padding": lambda M: M.conv1d(torch.ones(1, 2, 4), torch.ones(2, 2, 2), padding=-1),
    "padding's name": lambda M: M.conv1d(torch.ones(1, 2, 4), torch.ones(2, 2, 2), padding="some"),
    "same, strided": lambda M: M.conv1d(
        torch.ones(1, 2, 4), torch.ones(2, 2, 2), padding="same", stride=2
    ),
    "dimensions": lambda M: M.conv2d(torch.ones(2, 4), torch.ones(2, 2, 2, 2)),
    "weight's dimensions": lambda M: M.conv2d(torch.ones(1, 2, 4, 4), torch.ones(2, 2, 2)),
    "dtypes": lambda M: M.conv1d(torch.ones(1, 2, 4).double(), torch.ones(2, 2, 2)),
    "no tensor": lambda M: M.conv1d(torch.ones(1, 2, 4), None),
    "output_padding": lambda M: M.conv_transpose1d(
        torch.ones(1, 2, 4), torch.ones(2, 2, 2), output_padding=2
    ),
    "transposed channels": lambda M: M.conv_transpose2d(
        torch.ones(1, 3, 4, 4), torch.ones(2, 2, 2, 2)
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_refused_in_torchs_words(bad):
    errors = []
    for library in (F, TF):
        with pytest.raises(Exception) as caught:
            BAD[bad](library)
        # Of arguments of a wrong type torch lists all that it was given, by position or by name.
        errors.append((type(caught.value), str(caught.value).split(" - got")[0]))
    assert errors[0] == errors[1]


def test_a_single_number_in_a_tuple_is_for_every_dimension():
    x, W = torch.randn(1, 2, 5, 5), torch.randn(2, 2, 2, 2)
    options = {"stride": (2,), "padding": [1], "dilation": (2,)}
    assert torch.equal(F.conv2d(x, W, **options), TF.conv2d(x, W, **options))


def test_same_padding_of_an_even_kernel_warns_as_torch():
    with pytest.warns(UserWarning, match="may require a zero-padded copy"):
        F.conv1d(torch.ones(1, 1, 4), torch.ones(1, 1, 2), padding="same")


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_under_autocast_every_bit_is_torchs(name):
    torch.manual_seed(0)
    given = torch.randn(2, 4, 6, 6), torch.randn(4, 4, 3, 3), torch.randn(4)
    results = []
    for library in (F, TF):
        x, W, b = leaves = [t.clone().requires_grad_() for t in given]
        with torch.autocast("cpu", torch.bfloat16):
            z = getattr(library, name)(x, W, b, padding=1)
        assert z.dtype is torch.bfloat16
        results.append([z.detach(), *torch.autograd.grad(z.float().square().sum(), leaves)])
    assert all(a.dtype is b.dtype and torch.equal(a, b) for a, b in zip(*results, strict=True))
