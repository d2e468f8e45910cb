"""Normalisation and stochastic depth: formula and kernel, bits, statistics, what is made again, processes."""

import copy
import itertools

import norms_processes as work
import pytest
import torch
import torchvision
from battery import formula_and_kernel
from regimes_processes import together
from torch.nn import functional as TF

from manualnn import convert, nn
from manualnn import functional as F
from manualnn.ops import norms
from manualnn.ops.norms import formula
from manualnn.ops.norms.batch import batch_fold, instance_fold
from manualnn.ops.norms.sample import group_fold, layer_fold
from manualnn.ops.stochastic_depth import StochasticDepth

each_dtype = pytest.mark.parametrize(
    "dtype, of_parameters",
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
    ],
    ids=["float32", "float64", "mixed", "bfloat16", "mixed float16"],
)
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.mT.contiguous().mT,
    "strided": lambda x: torch.stack((x, x), -1)[..., 0],
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
PARAMETERS = ["gamma, beta", "gamma", "beta", ""]
C, EPS = 6, 1e-5


def numbers(*shape, dtype=torch.float64, seed=0, spread=0):
    """Around 1; of a spread, the scale of channel c is 10 to the power of −spread to spread."""
    torch.manual_seed(seed)
    x = torch.randn(*shape, dtype=torch.float64) * 3 + 1
    if spread:
        scale = torch.logspace(-spread, spread, shape[1], dtype=torch.float64)
        x = x * scale.view(-1, *(1 for _ in shape[2:]))
    return x.to(dtype)


def image(layout, dtype, spread=0):
    return LAYOUTS[layout](numbers(4, C, 5, 7, dtype=dtype, spread=spread))


def parameter(which, present, dtype, *shape):
    if which not in present:
        return None
    return (torch.linspace(0.3, 1.7, torch.Size(shape).numel()).view(shape) + 0.1).to(dtype)


CALLS = {
    "batch_norm": lambda M, x, g, b, s: M.batch_norm(x, *s, g, b, True, 0.2, EPS),
    "batch_norm, no statistics": lambda M, x, g, b, s: M.batch_norm(x, None, None, g, b, True),
    "batch_norm, eval": lambda M, x, g, b, s: M.batch_norm(x, *s, g, b, False, 0.2, EPS),
    "instance_norm": lambda M, x, g, b, s: M.instance_norm(x, None, None, g, b),
    "instance_norm, statistics": lambda M, x, g, b, s: M.instance_norm(x, *s, g, b, True, 0.2),
    "instance_norm, eval": lambda M, x, g, b, s: M.instance_norm(x, *s, g, b, False),
    "layer_norm": lambda M, x, g, b, s: M.layer_norm(x, x.shape[-1:], g, b),
    "layer_norm, three": lambda M, x, g, b, s: M.layer_norm(x, x.shape[1:], g, b),
    "group_norm": lambda M, x, g, b, s: M.group_norm(x, 3, g, b),
    "rms_norm": lambda M, x, g, b, s: M.rms_norm(x, x.shape[-1:], g),
    "rms_norm, three": lambda M, x, g, b, s: M.rms_norm(x, x.shape[1:], g, 1e-3),
}
each_call = pytest.mark.parametrize("call", CALLS)


def case(call, layout, dtype, of_parameters, present, spread=0):
    """x, gamma, beta and the running statistics for a call."""
    x = image(layout, dtype, spread)
    shape = {"one": x.shape[-1:], "three": x.shape[1:]}.get(
        "three" if "three" in call else "one" if call.startswith(("layer", "rms")) else "", (C,)
    )
    given = [parameter(which, present, of_parameters, *shape) for which in ("gamma", "beta")]
    running = numbers(C, dtype=of_parameters), numbers(C, dtype=of_parameters).square() + 0.5
    return x, given, running


def train(call, M, x, given, running, d_layout=None, needs=(True, True, True)):
    """The output, the gradients and the statistics afterwards."""
    leaves = [
        t if t is None else t.detach().clone().requires_grad_(need)
        for t, need in zip((x, *given), needs, strict=True)
    ]
    running = [s.clone() for s in running]
    y = CALLS[call](M, *leaves, running)
    torch.manual_seed(3)
    dy = torch.empty_like(y).copy_(torch.randn(y.shape))
    if d_layout is not None:
        dy = LAYOUTS[d_layout](dy)
    wrt = [t for t in leaves if t is not None and t.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, wrt, dy), *running]


def assert_equal(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)
        assert mine.dtype == other.dtype and mine.stride() == other.stride()


# --- torch's bits ------------------------------------------------------------------------------


@each_call
@each_dtype
def test_every_bit_is_torchs(call, dtype, of_parameters):
    for layout in LAYOUTS:
        for present in ["gamma", ""] if "rms" in call else PARAMETERS:
            if dtype != of_parameters and present == "beta" and "batch" not in call:
                continue  # torch reads the parameters' dtype off gamma, and refuses
            given = case(call, layout, dtype, of_parameters, present)
            assert_equal(train(call, F, *given), train(call, TF, *given))


@each_call
@pytest.mark.parametrize("d_layout", LAYOUTS)
def test_every_bit_is_torchs_for_a_gradient_of_any_layout(call, d_layout):
    for layout in LAYOUTS:
        given = case(
            call, layout, torch.float32, torch.float32, "gamma" if "rms" in call else "gamma, beta"
        )
        assert_equal(train(call, F, *given, d_layout), train(call, TF, *given, d_layout))


@each_call
@each_layout
def test_every_bit_is_torchs_where_some_are_frozen(call, layout):
    given = case(
        call, layout, torch.float32, torch.float32, "gamma" if "rms" in call else "gamma, beta"
    )
    for needs in [(0, 1, 1), (1, 0, 0), (1, 0, 1), (0, 1, 0), (0, 0, 1)]:
        if "rms" in call and not any(needs[:2]):
            continue
        needs = [bool(n) for n in needs]
        assert_equal(train(call, F, *given, needs=needs), train(call, TF, *given, needs=needs))


@pytest.mark.parametrize("name, shape", [("BatchNorm1d", (5, C)), ("BatchNorm2d", (3, C, 4, 2))])
@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}]
)
def test_a_few_steps_of_training_move_the_statistics_as_torch_does(name, shape, options):
    ours, theirs = (getattr(library, name)(C, **options) for library in (nn, torch.nn))
    for step in range(3):
        x = numbers(*shape, dtype=torch.float32, seed=step)
        assert_equal([ours(x)], [theirs(x)])
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_equal(ours.state_dict().values(), theirs.state_dict().values())
    x = numbers(*shape, dtype=torch.float32, seed=9)
    assert_equal([ours.eval()(x)], [theirs.eval()(x)])
    assert_equal(ours.state_dict().values(), theirs.state_dict().values())


@pytest.mark.parametrize("name", ["BatchNorm2d", "InstanceNorm2d"])
def test_a_refused_step_leaves_the_statistics(name):
    ours, theirs = (getattr(lib, name)(C, track_running_stats=True) for lib in (nn, torch.nn))
    errors = []
    for module in (ours, theirs):
        with pytest.raises(ValueError, match="Expected more than 1") as error:
            module(torch.ones(1, C, 1, 1))
        errors.append(str(error.value))
    assert errors[0] == errors[1]
    assert_equal(ours.state_dict().values(), theirs.state_dict().values())
    assert not ours.running_mean.any()


# --- the formula beside the kernel -------------------------------------------------------------


@pytest.mark.parametrize(
    "op, fold, options",
    [
        (norms.BatchNorm, batch_fold, (None, None, 0.1, EPS)),
        (norms.InstanceNorm, instance_fold, (None, None, 0.1, EPS)),
        (norms.LayerNorm, lambda x: layer_fold(x, x.shape[2:]), (2, EPS)),
        (norms.GroupNorm, lambda x: group_fold(x, 2), (2, EPS)),
        (norms.RMSNorm, lambda x: layer_fold(x, x.shape[1:]), (3, EPS)),
    ],
)
def test_the_formula_is_what_the_kernel_computes(op, fold, options):
    x, dy = numbers(4, C, 5, 7).requires_grad_(), numbers(4, C, 5, 7, seed=1)
    rms = op is norms.RMSNorm
    shape = {norms.LayerNorm: x.shape[2:], norms.RMSNorm: x.shape[1:]}.get(op, (C,))
    given = [numbers(*shape, seed=s).requires_grad_() for s in ((2,) if rms else (2, 3))]
    y = op.apply(x, *given, *options)[0]
    by_formula, _ = formula_and_kernel(y.grad_fn, dy)
    by_kernel = torch.autograd.grad(y, [x, *given], dy)
    for a, b in zip(by_kernel, by_formula, strict=False):
        torch.testing.assert_close(a, b.reshape(a.shape), rtol=1e-12, atol=1e-12)
    xhat, _ = formula.standardised(x.reshape(fold(x).x), fold(x).mean, EPS, not rms)
    by_hand = xhat * given[0].reshape(fold(x).gamma)
    by_hand = by_hand if rms else by_hand + given[1].reshape(fold(x).gamma)
    torch.testing.assert_close(y, by_hand.reshape(y.shape), rtol=1e-12, atol=1e-12)


def test_a_third_derivative_sees_the_statistics():
    """PyTorch #76185, #104040: mu and rstd as they were saved have lost their way to x."""
    x, dy = numbers(3, 2, 4).requires_grad_(), numbers(3, 2, 4, seed=1)
    assert torch.autograd.gradcheck(
        lambda x: torch.autograd.grad(
            torch.autograd.grad(
                F.batch_norm(x, None, None, None, None, True), x, dy, create_graph=True
            )[0],
            x,
            dy,
            create_graph=True,
        )[0],
        x,
    )


def test_evaluation_differentiates_by_the_statistics_it_used():
    """A training step between forward and backward moves them; torch's gradient moves along."""
    layer = nn.BatchNorm2d(C).double().eval()
    x = numbers(2, C, 3, 3).requires_grad_()
    (right,) = torch.autograd.grad(layer(x).square().sum(), x)
    y = layer(x)
    layer.train()(numbers(2, C, 3, 3, seed=5))
    (after,) = torch.autograd.grad(y.square().sum(), x)
    assert torch.equal(after, right)


@pytest.mark.parametrize("needs", [(1, 0), (1, 1), (0, 1)], ids=str)
def test_evaluation_keeps_x_only_for_gamma(needs):
    x = numbers(8, C, 9, 9).requires_grad_(bool(needs[0]))
    layer = nn.BatchNorm2d(C).double().eval()
    layer.weight.requires_grad_(bool(needs[1]))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    assert any(t.shape == x.shape for t in kept) is bool(needs[1])


# --- made again --------------------------------------------------------------------------------


def made_again(op, *inputs):
    """The output, and what `recompute` makes of its sources; parameters and statistics changed in between."""
    outputs = op._recorded_apply(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    make, sources = op.recompute(inputs, outputs if len(outputs) > 1 else outputs[0])
    assert all(isinstance(t, torch.Tensor) for t in sources)
    expected = outputs[0].clone()
    with torch.no_grad():
        for t in inputs[1:]:
            if isinstance(t, torch.Tensor):
                t.add_(1)
        found = make(*sources)
    assert torch.equal(found, expected) and found.stride() == outputs[0].stride()
    assert found.dtype == expected.dtype
    return sources


@each_layout
@each_dtype
@pytest.mark.parametrize("spread", [0, 2, 15])
def test_batch_norms_are_made_again(layout, dtype, of_parameters, spread):
    spread = min(spread, 3) if dtype is torch.float16 else spread
    for tracked in (True, False):
        for present in PARAMETERS:
            x, given, running = case("", layout, dtype, of_parameters, present, spread)
            statistics = running if tracked else (None, None)
            made_again(norms.BatchNorm, x, *given, *statistics, 0.1, EPS)
            if (given[0] is not None or not tracked) and not (
                dtype != of_parameters and given[0] is None
            ):
                by_example = [s if s is None else s.repeat(4) for s in statistics]
                made_again(norms.InstanceNorm, x, *given, *by_example, 0.1, EPS)
            x, given, running = case("", layout, dtype, of_parameters, present, spread)
            made_again(norms.RunningNorm, x, *given, *running, EPS)


def test_batch_norm_is_made_again_without_its_statistics():
    x, (gamma, beta), _ = case("", "contiguous", torch.float32, torch.float32, "gamma, beta")
    sources = made_again(norms.BatchNorm, x, gamma, beta, None, None, 0.1, EPS)
    assert [t.shape for t in sources] == [x.shape, *[(C,)] * 3]  # scale, mu, beta


@pytest.mark.parametrize("shape", [(5, C), (3, C, 4), (2, C, 3, 2, 2), (64, 32), (2, 16, 33)])
def test_batch_norm_is_made_again_in_any_number_of_dimensions(shape):
    x, gamma = numbers(*shape, dtype=torch.float32), torch.rand(shape[1])
    made_again(norms.BatchNorm, x, gamma, gamma.clone(), None, None, 0.1, EPS)
    if len(shape) == 5:
        x = x.contiguous(memory_format=torch.channels_last_3d)
        made_again(norms.BatchNorm, x, gamma, gamma.clone(), None, None, 0.1, EPS)


@each_layout
@each_dtype
def test_norms_of_an_example_are_made_again(layout, dtype, of_parameters):
    for present in ("gamma, beta", "gamma", ""):
        x, (gamma, beta), _ = case("layer_norm", layout, dtype, of_parameters, present)
        made_again(norms.LayerNorm, x, gamma, beta, 1, EPS)
        x, (gamma, beta), _ = case("group_norm", layout, dtype, of_parameters, present)
        made_again(norms.GroupNorm, x, gamma, beta, 3, EPS)
        x, (gamma, _), _ = case("rms_norm, three", layout, dtype, of_parameters, present)
        made_again(norms.RMSNorm, x, gamma, 3, None)


def test_stochastic_depth_is_made_again():
    for layout in LAYOUTS:
        for by_row in (True, False):
            x = image(layout, torch.float32)
            x, r = made_again(StochasticDepth, x, 0.4, by_row)
            assert r.numel() == (4 if by_row else 1)


# --- stochastic depth --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["row", "batch"])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_stochastic_depth_is_torchvisions(mode, p, dtype):
    results = []
    for module in (nn.StochasticDepth(p, mode), torchvision.ops.StochasticDepth(p, mode)):
        x = numbers(8, 3, 2, dtype=dtype).requires_grad_()
        torch.manual_seed(4)
        for _ in range(3):
            y = module(x)
            y.square().sum().backward()
        results.append([y.detach(), x.grad, torch.get_rng_state()])
        assert module.eval()(x) is x
    assert_equal(*results)


def test_stochastic_depth_takes_over_torchvisions_module():
    theirs = torchvision.ops.StochasticDepth(0.3, "row")
    ours = nn.StochasticDepth(0.3, "row")
    assert repr(ours) == repr(theirs) and vars(ours).keys() == vars(theirs).keys()
    theirs.__class__ = nn.StochasticDepth
    torch.manual_seed(0)
    y = theirs(torch.ones(6, 2))
    torch.manual_seed(0)
    assert torch.equal(y, ours(torch.ones(6, 2)))


@pytest.mark.parametrize("p, mode", [(-0.1, "row"), (1.1, "row"), (0.5, "rows")])
def test_stochastic_depth_refuses_as_torchvision_does(p, mode):
    errors = []
    for function in (F.stochastic_depth, torchvision.ops.stochastic_depth):
        with pytest.raises(ValueError) as error:
            function(torch.ones(2, 3), p, mode)
        errors.append(str(error.value))
    assert errors[0] == errors[1]


# --- in a model --------------------------------------------------------------------------------


def test_the_output_may_be_overwritten():
    """As by a ReLU in place."""
    for call in CALLS:
        present = "gamma" if "rms" in call else "gamma, beta"
        x, given, running = case(call, "contiguous", torch.float32, torch.float32, present)
        x.requires_grad_()
        y = CALLS[call](F, x, *given, running).relu_()
        (ours,) = torch.autograd.grad(y.sum(), x)
        y = CALLS[call](TF, x, *given, running).relu_()
        assert torch.equal(ours, torch.autograd.grad(y.sum(), x)[0])


def test_torchs_convert_sync_batchnorm_goes_on_working():
    model = convert(torch.nn.Sequential(torch.nn.Conv2d(3, C, 2), torch.nn.BatchNorm2d(C)))
    copied = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert type(copied[1]) is torch.nn.SyncBatchNorm
    assert type(convert(copied)[1]) is nn.SyncBatchNorm
    gamma = model[1].weight
    ours = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(ours[1]) is nn.SyncBatchNorm and ours[1].weight is gamma
    single = nn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm1d(3))
    assert type(single) is nn.SyncBatchNorm


def test_sync_batch_norm_in_two_processes_is_batch_norm_in_one(tmp_path):
    together(work.synchronise, tmp_path)
    for case, (options, split) in work.CASES.items():
        parts = [torch.load(f"{tmp_path}/{rank}.pt")[case] for rank in range(2)]
        x, dy = work.batch()
        layer = torch.nn.BatchNorm2d(work.CHANNELS, **options).double()
        x.requires_grad_()
        for _ in range(2):  # a second step, from the moved statistics
            y = layer(x)
        leaves = [x, *layer.parameters()]
        dx, *dparameters = torch.autograd.grad(y, leaves, dy, create_graph=True)
        second = torch.autograd.grad((dx * dy).sum(), x)[0]

        def whole(key, parts=parts):
            return torch.cat([part[key] for part in parts])

        def same(a, b):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)

        same(whole("y"), y)
        same(whole("dx"), dx)
        same(whole("second"), second)
        for i, d in enumerate(dparameters):  # of each its own: their sum is that of the whole batch
            same(sum(part["dparameters"][i] for part in parts), d)
        for part in parts:
            assert part["again"]
            for a, b in zip(part["buffers"], layer.buffers(), strict=True):
                same(a, b)
            assert part["eval is batch_norm"]
        assert [len(part["y"]) for part in parts] == list(split)


def in_gaps(values):
    """The same numbers, with others between them in memory."""
    return torch.stack((values, values.new_full(values.shape, 1e6)), -1)[..., 0]


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3), (4, 6, 3, 5)], ids=str)
@pytest.mark.parametrize("laid", ["in gaps", "expanded"])
@pytest.mark.parametrize("training", [True, False])
def test_parameters_with_gaps_in_memory(training, laid, shape):
    """PyTorch's kernels for the CPU read gamma, and the statistics, as if there were none."""
    results = []
    for gaps in (False, True):
        torch.manual_seed(0)
        x = torch.randn(shape, dtype=torch.float64)
        x = x if len(shape) < 4 else x.contiguous(memory_format=torch.channels_last)
        tensors = [torch.rand(6, dtype=torch.float64) + 0.5 for _ in range(4)]
        if laid == "expanded":
            tensors = [t[:1].expand(6) if gaps else t[:1].repeat(6) for t in tensors]
        elif gaps:
            tensors = [in_gaps(t) for t in tensors]
        gamma, beta, mu, var = tensors
        leaves = [t.detach().requires_grad_() for t in (x, gamma, beta)]
        statistics = (None, None) if training else (mu, var)
        y = F.batch_norm(leaves[0], *statistics, *leaves[1:], training)
        torch.manual_seed(1)
        grads = torch.autograd.grad(y, leaves, torch.randn(shape, dtype=torch.float64))
        results.append([y.detach(), *grads])
    for without, withal in zip(*results, strict=True):
        torch.testing.assert_close(withal, without, rtol=1e-12, atol=1e-12)


SLIM = [
    (1, 4, 1, 4),
    (2, 2, 1, 2),
    (1, 2, 2, 1),
    (1, 4, 4, 1),
    (2, 2, 1, 3),
    (4, 2, 1, 4),
    (2, 4, 2, 2),
]
OF_IMAGES = {
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
    "batch_norm, evaluation": lambda x: F.batch_norm(
        x, x.detach().mean((0, 2, 3)), x.detach().var((0, 2, 3)) + 1
    ),
    "instance_norm": lambda x: F.instance_norm(x),
    "group_norm": lambda x: F.group_norm(x, 2),
}


@pytest.mark.parametrize("shape", SLIM, ids=str)
@pytest.mark.parametrize("norm", OF_IMAGES.values(), ids=OF_IMAGES)
@pytest.mark.one_in(3)
def test_a_gradient_of_another_layout_of_slim_images(norm, shape):
    """PyTorch's kernel takes rows of channels for rows of pixels, where both have the same strides."""

    def laid(t, order):
        return t.permute(order).contiguous().permute([order.index(i) for i in range(4)])

    torch.manual_seed(0)
    image = torch.randn(shape, dtype=torch.float64)
    gradient = torch.arange(1.0, image.numel() + 1).double().cos().view(shape)
    # Of orders that give the same strides, as there are many where a size is 1, one.
    orders = {laid(image, order).stride(): order for order in itertools.permutations(range(4))}
    for of_x in orders.values():
        x = laid(image, of_x).requires_grad_()
        y = norm(x)
        for of_dy in orders.values():
            dy = laid(gradient, of_dy)
            by_kernel = torch.autograd.grad(y, x, dy, retain_graph=True)[0]
            by_formula = torch.autograd.grad(y, x, dy, create_graph=True)[0]
            torch.testing.assert_close(by_kernel, by_formula.detach(), rtol=1e-9, atol=1e-10)
