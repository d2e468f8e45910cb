"""Pooling: bits and indices against torch, one byte a window, ties, NaN, and windows of padding alone."""

from functools import partial

import pytest
import torch
from battery import assert_close

from manualnn import functional as F
from manualnn.ops.convolutions import unfold
from manualnn.ops.pooling import AdaptiveAvgPool, AdaptiveMaxPool, AvgPool, MaxPool, largest
from manualnn.ops.pooling.windows import adaptive, regular

TF = torch.nn.functional
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
SIZES = {1: (11,), 2: (9, 11), 3: (5, 6, 7)}
REGULAR = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    {"kernel_size": 5, "stride": 1, "padding": 2},
]
DILATED = [{"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 2, "ceil_mode": True}]
AVERAGES = [{"padding": 1, "kernel_size": 3, "ceil_mode": True, "count_include_pad": False}]
KINDS = {
    "normal": lambda *shape: torch.randn(shape),
    "ties": lambda *shape: torch.randint(-1, 2, shape).float(),
    "NaN and infinity": lambda *shape: torch.where(
        torch.rand(shape) < 0.7,
        torch.randn(shape),
        torch.tensor([float("nan"), float("-inf"), float("inf")])[torch.randint(0, 3, shape)],
    ),
}
each_dims = pytest.mark.parametrize("dims", [1, 2, 3])
each_kind = pytest.mark.parametrize("kind", KINDS)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def calls(dims):
    """Every pool of that many dimensions with every option, as (name, options)."""
    for options in REGULAR + DILATED:
        yield f"max_pool{dims}d", options | {"return_indices": True}
        yield f"max_pool{dims}d", options
    for options in REGULAR + AVERAGES:
        yield f"avg_pool{dims}d", options
        if dims > 1:
            yield f"avg_pool{dims}d", options | {"divisor_override": 5}
    for size in [1, 2, 3, 4] + ([(2, None, 3)[:dims]] if dims > 1 else []):
        yield f"adaptive_max_pool{dims}d", {"output_size": size, "return_indices": True}
        yield f"adaptive_avg_pool{dims}d", {"output_size": size}


def run(library, name, options, x):
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    made = getattr(library, name)(leaf, **options)
    outputs = made if isinstance(made, tuple) else (made,)
    dz = torch.linspace(-1, 2, outputs[0].numel()).view(outputs[0].shape).to(x.dtype)
    dz = torch.empty_like(outputs[0]).copy_(dz)
    return [*(t.detach() for t in outputs), *torch.autograd.grad(outputs[0], leaf, dz)]


def assert_same_bits(mine, other):
    for a, b in zip(mine, other, strict=True):
        assert a.dtype is b.dtype and a.shape == b.shape
        nan = a.isnan()
        assert torch.equal(nan, b.isnan()) and torch.equal(a[~nan], b[~nan])
        if a.is_floating_point():
            assert torch.equal(torch.signbit(a[~nan]), torch.signbit(b[~nan]))
            assert a.stride() == b.stride()


@each_dims
@each_kind
@each_dtype
def test_every_bit_is_torchs(dims, kind, dtype):
    torch.manual_seed(0)
    batched = KINDS[kind](2, 3, *SIZES[dims]).to(dtype)
    inputs = [batched, batched[0], batched.transpose(0, 1)]
    if dims > 1:
        inputs += [batched.contiguous(memory_format=LAST[dims])]
    for name, options in calls(dims):
        if kind != "normal" and "max" not in name:
            continue
        if name == "avg_pool3d" and dtype in (torch.bfloat16, torch.float16):
            continue  # torch has no such kernel; test_battery_values.py says that we say the same
        for x in inputs:
            assert_same_bits(run(F, name, options, x), run(TF, name, options, x))


@pytest.mark.parametrize(
    "kind, dtype",
    [(kind, torch.float32) for kind in KINDS] + [(list(KINDS)[-1], dtype) for dtype in DTYPES[1:]],
    ids=str,
)
@pytest.mark.parametrize(
    "shape",
    [(4, 32, 56, 56), (3, 19, 71, 67), (2, 5, 150, 128), (3, 8, 20, 30, 40), (8, 16, 2000)],
    ids=str,
)
@pytest.mark.one_in(3)
def test_every_bit_is_torchs_where_it_goes_block_by_block(shape, kind, dtype):
    """Rows of 56 and 67 are numbered by the lowest byte of a difference, of 128 and windows of 17 are not."""
    torch.manual_seed(0)
    dims = len(shape) - 2
    x = KINDS[kind](*shape).to(dtype)
    inputs = [x] if dims == 1 else [x, x.contiguous(memory_format=LAST[dims])]
    wide = {"kernel_size": 17, "stride": 8, "padding": 3}
    for options in [*REGULAR[:2], *DILATED] + ([wide] if dims < 3 else []):
        options = options | {"return_indices": True}
        for given in inputs:
            image = given.unsqueeze(-2) if dims == 1 else given
            blocks = largest.in_blocks(image, (1,) * max(dims, 2))
            assert (blocks is None) == (dims == 1)  # an image of height 1 goes at once
            name = f"max_pool{dims}d"
            assert_same_bits(run(F, name, options, given), run(TF, name, options, given))


@each_dims
def test_of_a_max_pool_one_byte_a_window_is_kept_of_an_average_none(dims):
    x = torch.randn(2, 3, *SIZES[dims], requires_grad=True)
    for name, options in calls(dims):
        kept = []

        def note(t, kept=kept):
            kept.append(t)
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            z = getattr(F, name)(x, **options)
        z = z[0] if isinstance(z, tuple) else z
        assert [t.dtype for t in kept] == ([torch.uint8] if "max" in name else [])
        assert sum(t.numel() for t in kept) == (z.numel() if "max" in name else 0)


@pytest.mark.parametrize("kernel, dtype", [(256, torch.uint8), (257, torch.int16)])
def test_a_window_of_more_than_256_elements(kernel, dtype):
    x = torch.randn(2, 300)
    numbers = 1, kernel, 1, 1, 0, 0, 1, 1
    position = MaxPool.apply(x[None, :, None, :], False, *numbers)[1]
    assert position.dtype is dtype
    options = {"kernel_size": kernel, "stride": 1, "return_indices": True}
    assert_same_bits(run(F, "max_pool1d", options, x), run(TF, "max_pool1d", options, x))
    image = torch.randn(1, 2, 200, 190)
    for options in ({"kernel_size": 185, "stride": 1}, {"kernel_size": 20}):
        assert_same_bits(
            run(F, "max_pool2d", options, image), run(TF, "max_pool2d", options, image)
        )


@pytest.mark.parametrize(
    "size", [(7,), (5, 7), (30, 112), (9, 128), (4, 5, 6), (3, 256, 260)], ids=str
)
def test_a_position_is_an_index_and_an_index_a_position(size):
    """All places of all windows, those in the padding too: they would have an index, if not a place."""
    dims = len(size)
    for kernel, stride, padding, dilation in ((3, 2, 1, 1), (2, 1, 0, 2), (3, 3, 1, 1)):
        count = [(n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for n in size]
        many = [(v,) * dims for v in (kernel, stride, padding, dilation)]
        check_numbering(regular(size, count, *many))
    check_numbering(adaptive(size, [3] * dims))


def check_numbering(w):
    starts = [w.starts(d, "cpu") for d in range(len(w.size))]
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):  # one place of each window, inside of the input
        places = []
        for start, n, reach in zip(starts, w.size, w.extent, strict=True):
            step = torch.randint(0, reach, start.shape, generator=generator)
            places.append((start + step).clamp(0, n - 1).maximum(start))
        index = places[0]
        for place, n in zip(places[1:], w.size[1:], strict=True):
            index = index.unsqueeze(-1) * n + place
        position = w.position(index)
        assert torch.equal(w.index(position), index)
        if index.dim() > 1:
            into = torch.empty_like(position)
            assert torch.equal(w.positions("cpu")(index, into=into), position)
            assert torch.equal(w.indices("cpu")(position, into=torch.empty_like(index)), index)


def test_a_window_that_no_element_lies_in_takes_no_gradient():
    """Dilated over the whole input, from padding to padding: torch writes outside of its memory."""
    x = torch.randn(1, 2, 4, dtype=torch.float64, requires_grad=True)
    options = {"kernel_size": 2, "stride": 1, "padding": 1, "dilation": 5}
    z = F.max_pool1d(x, **options)
    assert torch.equal(z, TF.max_pool1d(x.detach(), **options)) and (z == -float("inf")).all()
    for create_graph in (False, True):
        (dx,) = torch.autograd.grad(z.sum(), x, create_graph=create_graph, retain_graph=True)
        assert torch.equal(dx, torch.zeros_like(dx))
    _, tangent = torch.func.jvp(lambda x: F.max_pool1d(x, **options), (x,), (torch.ones_like(x),))
    assert torch.equal(tangent, torch.zeros_like(z))
    wide = torch.randn(2, 5, 16, 4000, requires_grad=True)  # as large as what goes block by block
    options = {"kernel_size": 2, "stride": 1, "padding": (1, 0), "dilation": (17, 1)}
    z, index = F.max_pool2d(wide, **options, return_indices=True)
    dz = torch.randn_like(z)
    (dx,) = torch.autograd.grad(z, wide, dz)
    inside = z > -float("inf")
    assert not inside.all() and torch.equal(z, TF.max_pool2d(wide.detach(), **options))
    by_hand = torch.zeros_like(wide).flatten(-2)
    by_hand.scatter_add_(-1, (index * inside).flatten(-2), (dz * inside).flatten(-2))
    torch.testing.assert_close(dx.flatten(-2), by_hand)

    # Reaching just into it: the last element, then the first.
    options = {"kernel_size": 2, "stride": 1, "padding": 1, "dilation": 4}
    x = torch.tensor([[[1.0, 2, 3, 4]]], dtype=torch.float64, requires_grad=True)
    z = F.max_pool1d(x, **options)
    assert z.tolist() == [[[4.0, 1.0]]]
    assert torch.autograd.grad(z.sum(), x)[0].tolist() == [[[1.0, 0, 0, 1.0]]]


@each_dims
def test_at_ties_the_first_takes_all_in_every_order_of_derivative(dims):
    x = torch.zeros(1, 1, *SIZES[dims], dtype=torch.float64)
    for name, options in (
        (f"max_pool{dims}d", REGULAR[1]),
        (f"adaptive_max_pool{dims}d", {"output_size": 2}),
    ):
        ours, theirs = (partial(getattr(library, name), **options) for library in (F, TF))
        jacobians = [
            torch.func.jacrev(ours)(x),
            torch.func.jacfwd(ours)(x),
            torch.autograd.functional.jacobian(theirs, x),
        ]
        assert torch.equal(jacobians[0], jacobians[2]) and torch.equal(jacobians[1], jacobians[2])


# --- again ------------------------------------------------------------------------------------

FUNCTIONS = {
    "max": (MaxPool, lambda n: (True, *[3] * n, *[2] * n, *[1] * n, *[1] * n)),
    "average": (AvgPool, lambda n: (True, False, None, *[3] * n, *[2] * n, *[1] * n)),
    "average, divided": (AvgPool, lambda n: (False, True, 5, *[2] * n, *[2] * n, *[0] * n)),
    "adaptive max": (AdaptiveMaxPool, lambda n: (3,) * n),
    "adaptive average": (AdaptiveAvgPool, lambda n: (2,) * n),
    "average of all": (AdaptiveAvgPool, lambda n: (1,) * n),
}


SHAPES = [(2, 3, 9, 11), (3, 9, 11), (2, 3, 5, 6, 7), (3, 24, 60, 70)]
REPEATED = [
    pytest.param(function, shape, dtype, id=f"{function}-{shape}-{dtype}")
    for function in FUNCTIONS
    for shape in SHAPES
    for dtype in DTYPES
    # torch has no avg_pool3d of narrow dtypes
    if not (FUNCTIONS[function][0] is AvgPool and len(shape) == 5 and dtype in DTYPES[2:])
]


@pytest.mark.parametrize("function, shape, dtype", REPEATED)
def test_again_makes_the_same_bits(function, shape, dtype):
    op, arguments = FUNCTIONS[function]
    dims = 3 if len(shape) == 5 else 2
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype)
    layouts = [x] + ([x.contiguous(memory_format=LAST[dims])] if len(shape) == dims + 2 else [])
    for given in layouts:
        inputs = (given.requires_grad_(), *arguments(dims))
        outputs = op.apply(*inputs)
        make, sources = op.recompute(inputs, outputs)
        first = outputs[0] if isinstance(outputs, tuple) else outputs
        with torch.no_grad():
            made = make(*sources)
        assert all(s is given for s in sources)
        assert torch.equal(made, first) and made.stride() == first.stride()
        assert made.dtype is first.dtype


# --- the formula of the average -----------------------------------------------------------------


def average(x, kernel, stride, padding, count_padding, divisor):
    """Σ x / D over each window, as unfolded patches; without ceil_mode."""
    dims = len(kernel)
    geometry = kernel, stride, padding, (1,) * dims
    patches = unfold(x, *geometry)
    elements = patches.shape[-1] if count_padding else unfold(torch.ones_like(x), *geometry).sum(-1)
    return patches.sum(-1) / (divisor or elements)


@pytest.mark.parametrize("count_padding", [True, False])
@pytest.mark.parametrize("divisor", [None, 7])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_formula_of_the_average(dims, divisor, count_padding):
    x = torch.randn(2, 3, *SIZES[dims], dtype=torch.float64, requires_grad=True)
    kernel, stride, padding = ((n,) * dims for n in (3, 2, 1))
    z = AvgPool.apply(x, False, count_padding, divisor, *kernel, *stride, *padding)
    formula = average(x, kernel, stride, padding, count_padding, divisor)
    assert_close(z, formula, torch.float64)
    dz = torch.randn_like(z)
    assert_close(*(torch.autograd.grad(t, x, dz)[0] for t in (z, formula)), torch.float64)


BAD = {
    "kernel larger than the input": lambda M, x: M.max_pool2d(x, 9),
    "padding": lambda M, x: M.max_pool2d(x, 2, padding=2),
    "stride": lambda M, x: M.avg_pool2d(x, 2, stride=0),
    "dimensions": lambda M, x: M.max_pool2d(x[0, 0], 2),
    "fraction": lambda M, x: M.max_pool2d(x, 1.5),
    "numbers": lambda M, x: M.avg_pool2d(x, (2, 2, 2)),
    "divisor": lambda M, x: M.avg_pool2d(x, 2, divisor_override=0),
    "of rows": lambda M, x: M.max_pool1d(x[0], 9),
    "output_size": lambda M, x: M.adaptive_avg_pool2d(x, (2, 2, 2)),
    "negative output_size": lambda M, x: M.adaptive_max_pool2d(x, -1),
    "nothing in a row": lambda M, x: M.adaptive_max_pool2d(x[..., :0], 2),
    "no tensor": lambda M, x: M.max_pool2d(None, 2),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("needs", [False, True], ids=["", "gradient"])
def test_bad_input_is_refused_in_torchs_words(bad, needs):
    errors = []
    for library in (F, TF):
        with pytest.raises(Exception) as caught:
            BAD[bad](library, torch.randn(1, 2, 4, 4, requires_grad=needs))
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("last", [False, True], ids=["", "channels_last"])
def test_what_goes_block_by_block_in_every_regime(last):
    """Blocks are written into; nobody who looks on may see that."""
    torch.manual_seed(0)
    x = torch.randn(2, 8, 128, 136, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    assert largest.in_blocks(x, (1, 1)) is not None
    v, options = torch.randn_like(x), REGULAR[1]
    ours, theirs = (partial(library.max_pool2d, **options) for library in (F, TF))

    def regimes(pool):
        def loss(x):
            return (pool(x) ** 3).sum()

        yield torch.func.jvp(pool, (x,), (v,))[1]
        with torch.autograd.forward_ad.dual_level():
            z = pool(torch.autograd.forward_ad.make_dual(x, v))
            yield torch.autograd.forward_ad.unpack_dual(z).tangent
        yield torch.func.grad(loss)(x)
        yield torch.func.vmap(pool)(x.unsqueeze(1))
        yield torch.func.vmap(torch.func.grad(loss))(x)
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        (dx,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
        yield dx.detach()
        yield torch.autograd.grad(dx.square().sum(), leaf)[0]
        z, dz = pool(leaf), torch.ones_like(pool(x))
        (batched,) = torch.autograd.grad(z, leaf, torch.stack([dz, -dz]), is_grads_batched=True)
        yield batched
        with torch.inference_mode():
            yield pool(x)

    for mine, other in zip(list(regimes(ours)), list(regimes(theirs)), strict=True):
        assert_close(mine, other, torch.float64)
