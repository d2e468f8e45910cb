"""Batch norm's own kernels: ATen's bits, forward, backward and running statistics; and when ATen serves."""

import functools
from decimal import Decimal

import kernel_cases
import pytest
import torch
from kernel_cases import Looks, need_every_kind

from manualnn import functional as F
from manualnn import nn
from manualnn.kernels import batch_norm, build, masks, running
from manualnn.kernels.trust import same_bits

SHAPES = [
    (2, 3, 5),
    (1, 1, 70),
    (3, 8, 7, 7),
    (2, 9, 4, 4),
    (5, 17, 1, 2),
    (2, 64, 31, 33),
    (2, 5, 3, 4, 5),
    (40, 2, 8),
]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
SPECIAL = [0.0, -0.0, 1e-40, 3e38, torch.inf, torch.nan]


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def drawn(shape, seed=0, special=None):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g) * 3 + 1
    if special is not None:
        x.view(-1)[torch.randint(x.numel(), (3,), generator=g)] = special
    return x


def given(shape, parameters, seed=0, special=None):
    """x, gamma, beta, mean and variance, some of them None."""
    one = (shape[1],)
    made = drawn(one, seed + 1), drawn(one, seed + 2), drawn(one, seed + 3), drawn(one, seed + 4)
    made = [t if wanted else None for t, wanted in zip(made, parameters, strict=True)]
    return drawn(shape, seed, special), *made


def same(mine, theirs):
    return all(a is b is None or same_bits(a, b) for a, b in zip(mine, theirs, strict=True))


def forward_of_both(x, gamma, beta, mean, var, momentum=0.1, eps=1e-5):
    copies = [t if t is None else t.clone() for t in (mean, var)]
    mine = batch_norm.forward(x, gamma, beta, mean, var, momentum, eps)
    theirs = torch.native_batch_norm(x, gamma, beta, *copies, True, momentum, eps)
    return mine and (*mine[:3], mean, var), (*theirs, *copies)


@need_every_kind
@each_shape
@pytest.mark.parametrize("parameters", [(1, 1, 1, 1), (0, 0, 0, 0), (1, 0, 1, 1), (0, 1, 0, 0)])
def test_forward(shape, parameters, threads):
    for seed, (momentum, eps) in enumerate([(0.1, 1e-5), (0.0, 1e-3), (1.0, 1e-12), (0.9, 0.5)]):
        mine, theirs = forward_of_both(*given(shape, parameters, seed), momentum, eps)
        assert same(mine, theirs)


@need_every_kind
@each_shape
@pytest.mark.parametrize("special", SPECIAL)
def test_special_values(shape, special):
    x, *parameters = given(shape, (1, 1, 1, 1), special=special)
    mine, theirs = forward_of_both(x, *parameters)
    assert same(mine, theirs)
    dy = drawn(shape, 9, special)
    back, theirs = backward_of_both((True,) * 3, dy, x, parameters[0])
    assert same(back, theirs)


def backward_of_both(needs, dy, x, gamma, eps=1e-5):
    _, mu, rstd = torch.native_batch_norm(x, gamma, None, None, None, True, 0.1, eps)
    theirs = torch.ops.aten.native_batch_norm_backward(
        dy, x, gamma, mu, rstd, mu, rstd, True, eps, list(needs)
    )
    mine = batch_norm.backward(needs, dy, x, gamma, mu, rstd)
    return mine, [t if needed else None for t, needed in zip(theirs, needs, strict=True)]


@need_every_kind
@pytest.mark.one_in(3)
@each_shape
@pytest.mark.parametrize("needs", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)])
@pytest.mark.parametrize("with_gamma", [True, False])
def test_backward(shape, needs, with_gamma, threads):
    needs = tuple(map(bool, needs))
    x, gamma, *_ = given(shape, (with_gamma, 0, 0, 0))
    mine, theirs = backward_of_both(needs, drawn(shape, 7), x, gamma)
    assert same(mine, theirs)


@need_every_kind
def test_whole_numbers_are_added_exactly():
    """Σ dy and Σ dy (x − mu) of small whole numbers have one answer, whatever the order of the sum."""
    g = torch.Generator().manual_seed(0)
    x = torch.randint(-4, 5, (2, 6, 9, 11), generator=g).float()
    dy = torch.randint(-4, 5, x.shape, generator=g).float()
    one = torch.ones(6)
    _, dgamma, dbeta = batch_norm.backward((True,) * 3, dy, x, one, 0 * one, one)
    assert torch.equal(dbeta, dy.double().sum((0, 2, 3)).float())
    assert torch.equal(dgamma, (dy * x).double().sum((0, 2, 3)).float())


AT_THE_END = "__builtin_fmaf(x[i + j] - mu, dy[i + j], b[j])"


@need_every_kind
def test_any_momentum():
    """1 − momentum is a difference of float32, as ATen has it."""
    momenta = (
        [i / 100 for i in range(101)] + [1 / i for i in range(1, 101)] + [0.9997, 1e-9, -0.3, 1.7]
    )
    for seed, momentum in enumerate(momenta):
        mine, theirs = forward_of_both(*given((2, 33, 3, 3), (1, 1, 1, 1), seed), momentum)
        assert same(mine, theirs), momentum


@need_every_kind
def test_the_mean_of_all_batches(monkeypatch):
    """momentum=None: that of the i-th batch is 1 / i."""
    mine, theirs = (of.BatchNorm2d(33, momentum=None) for of in (nn, torch.nn))
    for i in range(12):
        x = drawn((4, 33, 5, 5), i)
        mine(x), theirs(x)
    assert same_bits(mine.running_mean, theirs.running_mean)
    assert same_bits(mine.running_var, theirs.running_var)


FAULTS = {
    "forward: the rest in double": ("rest = 1 - part;", "rest = 1 - momentum;"),
    "forward: the mean of another count": ("total[j] / m;", "total[j] / (m + 1);"),
    "forward: a square in double": ("sum[j] += d * d;", "sum[j] += (double)d * d;"),
    "forward: two roundings": ("__builtin_fmaf(from[i], scale, shift)", "from[i] * scale + shift"),
    "forward: the variance that is kept": ("(float)(m - 1)", "(float)m"),
    "forward: the mean that is kept": ("float kept = rest * mean[c + j];", "float kept = mean[c + j];"),
    "forward: a group's last channel": ("j < some; j++) {", "j < some - 1; j++) {"),
    "backward: the end of a plane": ("i + j < S; j++", "i + j < S - 1; j++"),
    "backward: the end without its products": ("__builtin_fmaf(x[i + j] - mu, dy[i + j], b[j])", "0"),
    "backward: rounded twice at the end": (AT_THE_END, "b[j] + (x[i + j] - mu) * dy[i + j]"),
    "backward: another order of lanes": ("{4, 5, 6, 7, 0, 1, 2, 3}", "{1, 0, 3, 2, 5, 4, 7, 6}"),
    "backward: sums in float": ("double sum = 0, dot = 0;", "float sum = 0, dot = 0;"),
    "backward: gamma left out": (" * r * g;", " * r;"),
    "backward: rstd once": ("(float)dot * rstd[c] * rstd[c] / m", "(float)dot * rstd[c] / m"),
    "backward: few places": ("float product = (x[i] - mu) * dy[i];", "float product = x[i] * dy[i];"),
}  # fmt: skip


@need_every_kind
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_when_it_is_loaded(name, monkeypatch, tmp_path):
    right, wrong = FAULTS[name]
    text = batch_norm._SOURCE.read_text()
    assert text.count(right) >= 1
    file = tmp_path / "batch_norm.c"
    file.write_text(text.replace(right, wrong))
    monkeypatch.setattr(batch_norm, "_SOURCE", file)
    assert build.built(file.read_text()) is not None
    assert batch_norm._loaded.__wrapped__() is None
    file.write_text(text)
    assert batch_norm._loaded.__wrapped__() is not None


# --- when ATen serves -----------------------------------------------------------------------------


def answers(monkeypatch, call):
    """Whether each question was answered by a kernel, forward and backward."""
    return kernel_cases.answers(monkeypatch, batch_norm, ("forward", "backward"), call)


def trained(x, layer):
    layer(x).square().sum().backward()


@need_every_kind
def test_a_layer_takes_both_and_has_torchs_bits(monkeypatch):
    x = drawn((4, 5, 6, 7))
    results = []
    for kind in (nn.BatchNorm2d, torch.nn.BatchNorm2d):
        leaf, layer = x.clone().requires_grad_(), kind(5)
        found = answers(monkeypatch, functools.partial(trained, leaf, layer))
        assert found == ([True, True] if kind is nn.BatchNorm2d else [])
        grads = leaf.grad, layer.weight.grad, layer.bias.grad
        results.append((*grads, layer.running_mean, layer.running_var))
    assert same(*results)


def under_a_mode(x, layer):
    with Looks():
        trained(x, layer)


def under_autocast(x, layer):
    with torch.autocast("cpu"):
        layer(x)


def in_functional(x, layer):
    torch.func.grad(lambda x: layer(x).square().sum())(x.detach())


OTHERS = {
    "float64": lambda x, layer: trained(x.double(), layer.double()),
    "bfloat16": lambda x, layer: trained(x.bfloat16(), layer),
    "channels last": lambda x, layer: trained(x.to(memory_format=torch.channels_last), layer),
    "strided": lambda x, layer: trained(x.transpose(2, 3), layer),
    "a mode": under_a_mode,
    "autocast": under_autocast,
    "torch.func": in_functional,
    "one place": lambda x, layer: trained(x.flatten(2).transpose(0, 2)[:, :, :1], layer_1d(layer)),
    "running statistics of another dtype": lambda x, layer: trained(x, half_running(layer)),
    "meta": lambda x, layer: layer.to("meta")(x.to("meta")),
}  # fmt: skip


def layer_1d(layer):
    return nn.BatchNorm1d(layer.num_features)


def half_running(layer):
    layer.running_mean, layer.running_var = layer.running_mean.double(), layer.running_var.double()
    return layer


@pytest.mark.parametrize("name", OTHERS)
def test_aten_serves(name, monkeypatch):
    x, layer = drawn((4, 5, 6, 7)).requires_grad_(), nn.BatchNorm2d(5)

    def call():
        try:
            OTHERS[name](x, layer)
        except (RuntimeError, ValueError):  # as torch's own
            pass

    assert not any(answers(monkeypatch, call))


def test_switched_off(monkeypatch):
    monkeypatch.setattr(running, "enabled", False)
    assert not any(answers(monkeypatch, lambda: trained(drawn((4, 5, 6, 7)), nn.BatchNorm2d(5))))


def test_a_small_one_takes_atens_passes(monkeypatch):
    monkeypatch.setattr(running, "LEAST", 1 << 15)
    x = drawn((4, 5, 6, 7)).requires_grad_()
    assert not any(answers(monkeypatch, lambda: trained(x, nn.BatchNorm2d(5))))


@need_every_kind
def test_a_gradient_of_another_layout_is_atens():
    x = drawn((2, 3, 4, 5))
    dy = drawn((2, 3, 5, 4)).transpose(2, 3)
    one = torch.ones(3)
    assert batch_norm.backward((True,) * 3, dy, x, one, one, one) is None
    assert batch_norm.backward((True,) * 3, dy.contiguous(), x, one, one, one) is not None


@need_every_kind
def test_running_statistics_that_overlap_parameters():
    """As ATen, which reads them in the order of the channels."""
    x = drawn((4, 5, 6, 7))
    shared = torch.ones(5)
    mine, theirs = forward_of_both(x, None, None, shared, shared.clone())
    assert same(mine, theirs)


def test_without_a_compiler_aten_serves(anew, monkeypatch):
    monkeypatch.setattr(build, "_compiler", lambda: None)
    monkeypatch.setattr(batch_norm, "_loaded", batch_norm._loaded.__wrapped__)
    x = drawn((4, 5, 6, 7)).requires_grad_()
    assert not any(answers(monkeypatch, lambda: trained(x, nn.BatchNorm2d(5))))
    assert x.grad is not None


@need_every_kind
def test_instance_norm_takes_them_too(monkeypatch):
    x = drawn((4, 5, 6, 7)).requires_grad_()
    assert answers(monkeypatch, lambda: F.instance_norm(x).square().sum().backward()) == [
        True,
        True,
    ]
    leaf = x.detach().requires_grad_()
    torch.nn.functional.instance_norm(leaf).square().sum().backward()
    assert same_bits(x.grad, leaf.grad)


@need_every_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_another_default_dtype_changes_nothing(dtype):
    """What is compared when a kernel is loaded is float32, whatever tensors are by default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        assert batch_norm._loaded.__wrapped__() is not None
        assert masks._loaded.__wrapped__() is not None
    finally:
        torch.set_default_dtype(before)


@need_every_kind
@pytest.mark.parametrize("eps", [0.0, 1e-300, 1e-45])
def test_a_plane_without_variance(eps):
    x = drawn((2, 8, 5, 7))
    x[0, 3], x[1, 2] = 0.5, 0.0
    mine, theirs = F.instance_norm(x, eps=eps), torch.nn.functional.instance_norm(x, eps=eps)
    assert same_bits(mine, theirs)
    assert eps or torch.isfinite(mine).all()


@need_every_kind
def test_one_channel_that_might_lie_by_places(monkeypatch):
    """Its strides say channels last, as its numbers lie by planes, too: ATen takes it by places."""
    x = drawn((8, 1, 9, 7)).to(memory_format=torch.channels_last)
    results = []
    for of in (nn, torch.nn):
        torch.manual_seed(0)
        leaf, layer = x.clone().requires_grad_(), of.BatchNorm2d(1)
        y = layer(leaf)
        y.backward(drawn((8, 1, 9, 7), 5))
        results.append((y, leaf.grad, layer.weight.grad, layer.bias.grad))
    for mine, theirs in zip(*results, strict=True):
        assert same_bits(mine, theirs)
        assert mine.stride() == theirs.stride()
    assert not any(answers(monkeypatch, lambda: trained(x, nn.BatchNorm2d(1))))


@need_every_kind
def test_strides_of_dimensions_of_one_element_are_atens():
    x = drawn((3, 5, 11, 7))[::3][:1].requires_grad_()
    mine, theirs = nn.BatchNorm2d(5)(x), torch.nn.BatchNorm2d(5)(x)
    assert mine.stride() == theirs.stride()


@need_every_kind
def test_each_gradient_has_memory_of_its_own():
    """Who writes over one, or frees it, leaves the others alone."""
    layer = nn.BatchNorm2d(5)
    x = drawn((4, 5, 6, 7)).requires_grad_()
    loss = layer(x).square().sum()
    found = torch.autograd.grad(loss, [x, layer.weight, layer.bias])
    assert len({t.untyped_storage().data_ptr() for t in found}) == 3
    for t in found:
        assert t._base is None and not t._is_view()
        assert t.untyped_storage().nbytes() == t.nbytes
    gamma, beta = found[1:]
    gamma.add_(0.1 * layer.weight)
    product = (gamma * layer.weight).sum()
    beta.mul_(2)
    product.backward()


def test_without_its_file_aten_serves(anew, monkeypatch, tmp_path):
    monkeypatch.setattr(batch_norm, "_SOURCE", tmp_path / "left_out.c")
    monkeypatch.setattr(batch_norm, "_loaded", batch_norm._loaded.__wrapped__)
    x = drawn((4, 5, 6, 7)).requires_grad_()
    with pytest.warns(RuntimeWarning, match="cannot be read"):
        assert not any(answers(monkeypatch, lambda: trained(x, nn.BatchNorm2d(5))))
    assert x.grad is not None


@need_every_kind
def test_a_comparison_that_raises_leaves_it_to_aten(monkeypatch):
    def refused(*args):
        raise RuntimeError("as an operation might")

    monkeypatch.setattr(batch_norm, "_agrees", refused)
    monkeypatch.setattr(masks, "_agrees", refused)
    assert batch_norm._loaded.__wrapped__() is None
    assert masks._loaded.__wrapped__() is None


@need_every_kind
@pytest.mark.parametrize("momentum, eps", [(0.1 + 0j, 1e-5), (0.1, Decimal("0.001"))])
def test_what_is_no_number_to_aten_is_refused_in_its_words(momentum, eps):
    x = drawn((4, 5, 6, 7))
    found = []
    for of in (F, torch.nn.functional):
        with pytest.raises(TypeError) as refused:
            of.batch_norm(x, torch.zeros(5), torch.ones(5), None, None, True, momentum, eps)
        found.append(type(refused.value))
    assert found[0] is found[1]
