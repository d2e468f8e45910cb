"""Chains: what follows one another element by element is one kernel, with the bits of one after the other."""

import pytest
import torch
from kernel_cases import Looks, need_every_kind

import manualnn
from manualnn.autograd.blockwise import Elementwise
from manualnn.conversion.calls import ELEMENTWISE
from manualnn.kernels import c, chains, running
from manualnn.kernels.chains import BY_CHANNEL, EACH, Link
from manualnn.kernels.trust import same_bits
from manualnn.memory import backward_pass
from manualnn.ops.activations import pointwise
from manualnn.ops.norms.batch import shifted

SHIFT = Link(shifted, (EACH, BY_CHANNEL, BY_CHANNEL, BY_CHANNEL))
UNSHIFTED = Link(shifted, (EACH, BY_CHANNEL, BY_CHANNEL))
RELU = pointwise.ReLU.forward
SHAPES = [(2, 3, 5), (1, 1, 40), (3, 8, 7, 7), (2, 5, 31, 67), (2, 3, 2, 3, 4), (1, 2, 1, 1)]
# What stands behind a norm in the models that people train, with options that are no whole numbers.
ACTIVATIONS = {
    "ReLU": (RELU, ()),
    "ReLU6": (pointwise.ReLU6.forward, (0.0, 6.0)),
    "Hardtanh": (pointwise.Hardtanh.forward, (-0.7, 1.3)),
    "LeakyReLU": (pointwise.LeakyReLU.forward, (0.01,)),
    "LeakyReLU, steep": (pointwise.LeakyReLU.forward, (-1.7,)),
    "Hardswish": (pointwise.Hardswish.forward, ()),
    "Hardsigmoid": (pointwise.Hardsigmoid.forward, ()),
    "Softsign": (pointwise.Softsign.forward, ()),
    "Threshold": (pointwise.Threshold.forward, (0.4, -3.0)),
}


def link(function, *given, options=()):
    return Link(function, given, options, repr(options))


CHAINS = {name: link(f, SHIFT, options=options) for name, (f, options) in ACTIVATIONS.items()}
CHAINS |= {
    "shift": SHIFT,
    "shift without beta": UNSHIFTED,
    "shift + residual": link(torch.add, SHIFT, EACH),
    "residual + shift, ReLU": link(RELU, link(torch.Tensor.__add__, EACH, SHIFT)),
    "two shifts, ReLU": link(RELU, link(torch.Tensor.add, SHIFT, UNSHIFTED)),
    "product of two sums": link(torch.mul, link(torch.add, EACH, EACH), link(torch.sub, EACH, SHIFT)),
    "ReLU of a sum, plain": link(RELU, link(torch.add, EACH, EACH)),
}  # fmt: skip
# What has no kernel by itself here: ATen computes it in another way where a vector is not full.
RAGGED = {"SiLU": pointwise.SiLU.forward, "Sigmoid": pointwise.Sigmoid.forward}


def tensors_of(chain, shape, dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    made = []
    for leaf in chain.leaves():
        t = torch.randn(shape if leaf is EACH else shape[1:2], generator=g, dtype=torch.float64) * 2
        if leaf is EACH and t.numel() > 8:
            special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-40, 3.0, -3.0])
            t.view(-1)[torch.randperm(t.numel(), generator=g)[:8]] = special.double()
        narrow = leaf is BY_CHANNEL and dtype.itemsize == 2  # the parameters of a norm are not
        made.append(t.float() if narrow else t.to(dtype))
    return made


@pytest.fixture
def two_threads(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(running, "GRAIN", 64)  # so that small tensors are shared, too
    yield
    torch.set_num_threads(before)


@need_every_kind
@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize("name", CHAINS)
def test_the_bits_of_one_after_the_other(name, dtype, two_threads):
    chain = CHAINS[name]
    for seed, shape in enumerate(SHAPES):
        tensors = tensors_of(chain, shape, dtype, seed)
        found = chains.run(chain, tensors)
        assert found is not None, shape
        assert same_bits(found, chain(*tensors)), shape


@need_every_kind
@pytest.mark.one_in(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CHAINS)
def test_channels_last(name, dtype, two_threads):
    chain = CHAINS[name]
    for seed, shape in enumerate([(3, 8, 7, 7), (2, 5, 31, 67), (1, 19, 2, 3), (2, 3, 2, 3, 4)]):
        lie = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
        tensors = tensors_of(chain, shape, dtype, seed)
        tensors = [t if t.dim() == 1 else t.to(memory_format=lie) for t in tensors]
        found = chains.run(chain, tensors)
        assert found is not None, shape
        expected = chain(*tensors)
        assert same_bits(found, expected), shape
        assert found.stride() == expected.stride()


@need_every_kind
def test_options_that_are_equal_and_not_the_same():
    """−0.0 == 0.0, and 1 == True: as keys they would be one."""
    x = torch.tensor([[[-1.0, 2.0, 0.0, -0.0]]])
    for low in (0.0, -0.0):
        chain = link(torch.clamp, link(torch.add, EACH, EACH), options=(low, 5.0))
        assert same_bits(chains.run(chain, [x, x]), chain(x, x))


@need_every_kind
@pytest.mark.parametrize("name", RAGGED)
def test_what_is_ragged_is_atens(name):
    chain = link(RAGGED[name], SHIFT)
    assert chains.run(chain, tensors_of(chain, (3, 8, 7, 7), torch.float32)) is None


@need_every_kind
def test_when_aten_serves(monkeypatch):
    chain = CHAINS["residual + shift, ReLU"]
    tensors = tensors_of(chain, (2, 6, 4, 8), torch.float32)
    assert chains.run(chain, tensors) is not None
    r, x, *parameters = tensors
    for wrong in (
        [r[:, :, :2], x, *parameters],
        [r.double(), x, *parameters],
        [r.transpose(2, 3).contiguous().transpose(2, 3), x, *parameters],
        [r.to(memory_format=torch.channels_last), x, *parameters],
        [r, x, *(p[:1] for p in parameters)],
        [r, x, *(p.expand(2, 6)[0][::1].repeat(2)[::2] for p in parameters)],
        [r.bfloat16(), x.bfloat16(), *(p.bfloat16() for p in parameters)],
        [r.bfloat16(), x, *parameters],
        [t.to("meta") for t in tensors],
        [r[0, 0], x[0, 0], *(p[:4] for p in parameters)],
    ):
        assert chains.run(chain, wrong) is None
    with Looks():
        assert chains.run(chain, tensors) is None
    with torch.autocast("cpu"):
        assert chains.run(chain, tensors) is None
    monkeypatch.setattr(running, "LEAST", 1 << 15)
    assert chains.run(chain, tensors) is None
    monkeypatch.setattr(running, "LEAST", 0)
    monkeypatch.setattr(running, "enabled", False)
    assert chains.run(chain, tensors) is None


@need_every_kind
@pytest.mark.parametrize(
    "right, wrong",
    [
        ("__builtin_fma", "__builtin_fdim"),
        ("row % channels", "0"),
        ("x0 + row * size", "x0 + 0 * size"),
        ("size - at", "size - at - 1"),
    ],
)
def test_a_planted_fault_is_found_when_it_is_loaded(right, wrong, monkeypatch):
    text, chain = c.text, CHAINS["residual + shift, ReLU"]
    tensors = tensors_of(chain, (2, 6, 4, 8), torch.float32)
    monkeypatch.setattr(chains, "_kernels", {})
    assert chains.run(chain, tensors) is not None

    def planted(programs):
        printed = text(programs)
        assert right in printed
        made = printed.replace(right, wrong)
        return made.replace("__builtin_fdimf(", "wrong_fma(").replace(
            "typedef long long count;",
            "typedef long long count;\nstatic float wrong_fma(float a, float b, float c) { return a * b + c; }",
        )

    monkeypatch.setattr(chains.c, "text", planted)
    monkeypatch.setattr(chains, "_kernels", {})
    assert chains.run(chain, tensors) is None


# --- in a converted model -------------------------------------------------------------------------


class Block(torch.nn.Module):
    """Two convolutions and what stands between them in a residual network."""

    def __init__(self, inplace=True, act=torch.nn.ReLU, downsample=False):
        super().__init__()
        conv = torch.nn.Conv2d
        self.conv1, self.bn1 = conv(4, 6, 3, padding=1, bias=False), torch.nn.BatchNorm2d(6)
        self.conv2, self.bn2 = conv(6, 4, 3, padding=1, bias=False), torch.nn.BatchNorm2d(4)
        self.conv3 = conv(4, 3, 1)
        self.down = torch.nn.Sequential(conv(4, 4, 1, bias=False), torch.nn.BatchNorm2d(4))
        self.act, self.downsample = act(inplace=inplace), downsample

    def forward(self, x):
        out = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        out += self.down(x) if self.downsample else x
        return self.conv3(self.act(out))


MODELS = {
    "in place": lambda: Block(),
    "not in place": lambda: Block(inplace=False),
    "downsample": lambda: Block(downsample=True),
    "ReLU6": lambda: Block(act=torch.nn.ReLU6),
    "Hardswish": lambda: Block(act=torch.nn.Hardswish),
    "LeakyReLU": lambda: Block(act=torch.nn.LeakyReLU),
    "SiLU": lambda: Block(act=torch.nn.SiLU),
}


def gradients(model, x, **options):
    loss = model(x).square().mean()
    loss.backward(**options)
    return [loss, *(p.grad for p in model.parameters() if p.grad is not None)]


def count_of_kernels(monkeypatch, change=lambda tensor: tensor):
    found, run = [], chains.run

    def seen(chain, tensors, *more):
        made = run(chain, tensors, *more)
        found.append(made is not None)
        return made if made is None else change(made)

    monkeypatch.setattr(backward_pass.chains, "run", seen)
    return found


@need_every_kind
@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_torchs_bits(name, monkeypatch):
    torch.manual_seed(0)
    theirs = MODELS[name]()
    torch.manual_seed(0)
    ours = manualnn.convert(MODELS[name]())
    found = count_of_kernels(monkeypatch)
    for seed in range(3):
        x = torch.randn(2, 4, 9, 7, generator=torch.Generator().manual_seed(seed))
        pairs = zip(gradients(ours, x), gradients(theirs, x), strict=True)
        assert all(same_bits(a, b) for a, b in pairs)
    assert any(found)


@need_every_kind
def test_a_norm_that_two_read_is_made(monkeypatch):
    """What is needed besides the chain is recomputed by itself, once."""

    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.a = torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 4, 1)
            self.b, self.first = torch.nn.Conv2d(4, 4, 1), torch.nn.Conv2d(4, 4, 1)

        def forward(self, x):
            z = self.bn(self.first(x))
            return self.a(torch.relu(z)) + self.b(z) + self.b(torch.relu(z + x))

    torch.manual_seed(0)
    theirs = Twice()
    torch.manual_seed(0)
    ours = manualnn.convert(Twice())
    x = torch.randn(2, 4, 9, 7)
    found = count_of_kernels(monkeypatch)
    pairs = zip(gradients(ours, x), gradients(theirs, x), strict=True)
    assert all(same_bits(a, b) for a, b in pairs)
    assert found


@need_every_kind
def test_a_wrong_number_is_noticed(monkeypatch):
    """The fingerprint that forward took is compared with what the kernel gives, too."""
    torch.manual_seed(0)
    model = manualnn.convert(Block(), verify="full")
    count_of_kernels(monkeypatch, lambda t: t.add_(1e-3))
    with pytest.raises(manualnn.RecomputationError):
        gradients(model, torch.randn(2, 4, 9, 7))


@need_every_kind
def test_a_changed_source_is_noticed():
    torch.manual_seed(0)
    model = manualnn.convert(Block())
    saved = []
    hook = model.conv1.register_forward_hook(lambda m, i, o: saved.append(o))
    loss = model(torch.randn(2, 4, 9, 7)).sum()
    hook.remove()
    with torch.no_grad():
        saved[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@need_every_kind
def test_backward_twice_and_through_it():
    torch.manual_seed(0)
    theirs = Block(inplace=False)
    torch.manual_seed(0)
    ours = manualnn.convert(Block(inplace=False))
    x = torch.randn(2, 4, 9, 7)
    found = []
    for model in (ours, theirs):
        leaf = x.clone().requires_grad_()
        loss = model(leaf).square().mean()
        first = torch.autograd.grad(loss, leaf, retain_graph=True)[0]
        second = torch.autograd.grad(loss, leaf, create_graph=True)[0]
        (third,) = torch.autograd.grad(second.square().sum(), model.conv1.weight)
        found.append((first, second, third))
    (a, b, c3), (d, e, f) = found
    assert same_bits(a, d)
    torch.testing.assert_close(b.detach(), a)  # by the formulas
    torch.testing.assert_close(b, e)
    torch.testing.assert_close(c3, f)


def test_a_users_formula_is_in_no_chain():
    """What it reads may change from one call to the next."""
    for func in ELEMENTWISE:
        assert func.__name__.strip("_") in {
            "add",
            "radd",
            "sub",
            "subtract",
            "mul",
            "rmul",
            "multiply",
        }
    z = torch.randn(3, requires_grad=True)
    for cls in (pointwise.ReLU, pointwise.Softsign):
        make, *_ = cls.recompute((z,), z)
        assert type(make) is Elementwise

    class Own(manualnn.Activation):
        @staticmethod
        def g(z):
            return z * 2

        @staticmethod
        def g_prime(z):
            return torch.full_like(z, 2.0)

    make, *_ = Own.recompute((z,), z)
    assert type(make) is not Elementwise


@need_every_kind
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("verify", [True, "full"])
def test_a_loss_that_is_nan_stays_one(value, verify):
    """PyTorch's kernels give NaN one set of bits in a full vector and another in the rest; so may ours."""
    for act in (torch.nn.ReLU, torch.nn.Hardswish, torch.nn.LeakyReLU):
        torch.manual_seed(0)
        model = manualnn.convert(Block(act=act), verify=verify)
        x = torch.randn(4, 4, 9, 7)
        x[0, 0, 0, 0] = value
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(x).sum()
        loss.backward()
        assert all(p.grad.isnan().any() for p in model.conv1.parameters())
