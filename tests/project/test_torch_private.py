"""What of PyTorch's has no public name: each does what manualnn takes it to do, and nobody else names it."""

import ast
import math
from pathlib import Path

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn import functional

import manualnn
from manualnn import _torch

ROOT = Path(manualnn.__file__).parent
TESTS = {}


def of(*names):
    """The test of these names."""

    def register(test):
        TESTS.update(dict.fromkeys(names, test))
        return test

    return register


def names():
    """Every name that the file defines or gives on."""
    tree = ast.parse((ROOT / "_torch.py").read_text())
    found = set(_torch.__all__)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                found |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
    return sorted(name for name in found if not name.startswith("_"))


@pytest.mark.parametrize("name", names())
def test_each_name_is_what_it_is_taken_for(name):
    TESTS[name]()


# --- the walk ----------------------------------------------------------------------------------


def private(tree):
    """Names of torch's that begin with an underscore, where a file names them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            parts = [*node.module.split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            parts = [p for a in node.names if a.name.startswith("torch") for p in a.name.split(".")]
        elif isinstance(node, ast.Attribute):
            parts, of = [node.attr], node.value
            while isinstance(of, ast.Attribute):
                parts, of = [of.attr, *parts], of.value
            parts = [of.id if isinstance(of, ast.Name) else "", *parts]
            if parts[0] not in ("torch", "aten", "functorch", "forward_ad", "F", "TF"):
                continue
        else:
            continue
        if any(p.startswith("_") and not p.startswith("__") for p in parts):
            yield f"line {node.lineno}: {'.'.join(parts)}"


@pytest.mark.parametrize(
    "path", sorted(ROOT.rglob("*.py")), ids=lambda p: p.relative_to(ROOT).as_posix()
)
def test_nobody_else_names_what_is_private(path):
    found = list(private(ast.parse(path.read_text())))
    assert bool(found) == (path == ROOT / "_torch.py"), found


def test_the_walk_sees_a_private_name():
    code = "import torch._dynamo\nfrom torch._C import x\nfrom torch import _y\ntorch._C.z()\n"
    lines = {found.partition(":")[0] for found in private(ast.parse(code))}
    assert lines == {"line 1", "line 2", "line 3", "line 4"}
    assert not list(private(ast.parse("torch.stack(self._losses).double()")))


@of("holders")
def _():
    t = torch.ones(3)
    alone = _torch.holders(t, t.untyped_storage())
    view = t.detach()
    assert _torch.holders(t, t.untyped_storage()) == (alone[0], alone[1] + 1)
    capsule = torch.utils.dlpack.to_dlpack(t)
    assert _torch.holders(t, t.untyped_storage()) == (alone[0] + 1, alone[1] + 1)
    del view, capsule
    assert _torch.holders(t, t.untyped_storage()) == alone


@of("overload_into")
def _():
    da, a = torch.randn(5), torch.randn(5)
    kernel = torch.ops.aten.tanh_backward.default
    expected = kernel(da, a)
    into = _torch.overload_into(kernel)
    assert into(da, a, grad_input=da) is da and torch.equal(da, expected)
    assert _torch.overload_into(torch.ops.aten.mish_backward.default) is None
    assert _torch.overload_into(torch.relu) is None


# --- which moment it is ------------------------------------------------------------------------


@of("F")
def _():
    assert vars(_torch.F)["relu"] is functional.relu
    was, functional.relu = functional.relu, None
    try:
        assert _torch.F.relu is was
    finally:
        functional.relu = was


@of("any_autocast")
def _():
    assert not _torch.any_autocast()
    with torch.autocast("cpu", torch.bfloat16):
        assert _torch.any_autocast()


@of("is_jit_tracing")
def _():
    seen = []
    assert not _torch.is_jit_tracing()
    look = lambda x: seen.append(_torch.is_jit_tracing()) or x + 1  # noqa: E731
    torch.jit.trace(look, torch.ones(1), check_trace=False)
    assert seen == [True]


@of("transforms_active")
def _():
    seen = []
    torch.func.vmap(lambda x: seen.append(_torch.transforms_active()) or x)(torch.ones(2))
    assert seen == [True] and not _torch.transforms_active()


@of("graph_task")
def _():
    seen = []
    x = torch.ones(1, requires_grad=True)
    y = x * 1
    y.register_hook(lambda d: seen.append(_torch.graph_task()))
    y.sum().backward()
    assert seen[0] >= 0 and _torch.graph_task() == -1


@of("after_backward")
def _():
    seen = []
    x = torch.ones(1, requires_grad=True)
    y = x * 1
    y.register_hook(lambda d: _torch.after_backward(lambda: seen.append(x.grad.item())))
    y.sum().backward()
    assert seen == [1.0]
    with pytest.raises(RuntimeError):
        _torch.after_backward(seen.clear)


@of("forward_level", "forward_mode_enabled")
def _():
    assert _torch.forward_level() == -1
    with forward_ad.dual_level():
        assert _torch.forward_level() == 0
        x = forward_ad.make_dual(torch.ones(1), torch.ones(1))
        with _torch.forward_mode_enabled(False):
            assert forward_ad.unpack_dual(x * 2).tangent is None
            with _torch.forward_mode_enabled(True):
                assert forward_ad.unpack_dual(x * 2).tangent == 2


# --- tensors -----------------------------------------------------------------------------------


@of("is_alias_of")
def _():
    x = torch.ones(2)
    assert _torch.is_alias_of(x, x[1:]) and not _torch.is_alias_of(x, x.clone())


@of("conj_view", "neg_view")
def _():
    x = torch.tensor([1 + 2j])
    assert _torch.conj_view(x).is_conj() and _torch.conj_view(x) == x.conj()
    assert _torch.neg_view(x).is_neg() and _torch.neg_view(x) == -x


@of("no_torch_function")
def _():
    class Quiet(torch.Tensor):
        __torch_function__ = _torch.no_torch_function

    assert type(torch.ones(1).as_subclass(Quiet) + 1) is torch.Tensor


@of("is_written_at_own_risk")
def _():
    x = torch.ones(2, 2, requires_grad=True) * 1
    assert _torch.is_written_at_own_risk(x.unbind()[0]) and not _torch.is_written_at_own_risk(x[0])


@of("is_batched")
def _():
    seen = []
    x = torch.ones(2, requires_grad=True)
    y = x * 1
    y.register_hook(lambda d: seen.append(_torch.is_batched(d)))
    torch.autograd.grad(y, x, torch.eye(2), is_grads_batched=True)
    assert seen == [True] and not _torch.is_batched(x)


@of("next_node")
def _():
    first = _torch.next_node()
    (torch.ones(1, requires_grad=True) * 2).grad_fn  # noqa: B018
    assert _torch.next_node() == first + 1


# --- modes and hooks ---------------------------------------------------------------------------


class Counting(torch.overrides.TorchFunctionMode):
    def __init__(self):
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen.append(function)
        return function(*args, **(kwargs or {}))


class Dispatched(_torch.TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(function)
        return function(*args, **(kwargs or {}))


@of("without_torch_function", "all_function_modes")
def _():
    with Counting() as mode:
        assert list(_torch.all_function_modes()) == [mode]
        with _torch.without_torch_function():
            torch.ones(1) + 1
    assert mode.seen == [] and list(_torch.all_function_modes()) == []


@of("dispatch_modes", "all_dispatch_modes", "without_dispatch_modes", "TorchDispatchMode")
def _():
    with Dispatched() as mode:
        assert _torch.dispatch_modes() == 1 and list(_torch.all_dispatch_modes()) == [mode]
        torch.ones(1)
        count = len(mode.seen)
        with _torch.without_dispatch_modes():
            torch.ones(1)
    assert len(mode.seen) == count > 0 and _torch.dispatch_modes() == 0


@of("top_saved_tensors_hooks", "push_saved_tensors_hooks", "pop_saved_tensors_hooks")
def _():
    assert _torch.top_saved_tensors_hooks(True) is None
    packed = []
    _torch.push_saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t)
    try:
        assert _torch.top_saved_tensors_hooks(True) is not None
        torch.ones(1, requires_grad=True).exp()
    finally:
        _torch.pop_saved_tensors_hooks()
    assert len(packed) == 1 and _torch.top_saved_tensors_hooks(True) is None


@of("saved_tensors_hooks_allowed")
def _():
    assert _torch.saved_tensors_hooks_allowed()
    with torch.autograd.graph.disable_saved_tensors_hooks("not here"):
        assert not _torch.saved_tensors_hooks_allowed()


@of("has_global_hook")
def _():
    assert not _torch.has_global_hook()
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert _torch.has_global_hook()
    handle.remove()


@of("tree_iter", "tree_leaves", "tree_map", "tree_map_only")
def _():
    tree = {"a": [1, (2.0,)], "b": 3}
    assert list(_torch.tree_iter(tree)) == _torch.tree_leaves(tree) == [1, 2.0, 3]
    assert _torch.tree_map(lambda x: x + 1, tree) == {"a": [2, (3.0,)], "b": 4}
    assert _torch.tree_map_only(float, lambda x: 0.0, tree) == {"a": [1, (0.0,)], "b": 3}


@of("Convolutions")
def _():
    assert all(
        issubclass(getattr(torch.nn, f"{kind}{d}d"), _torch.Convolutions)
        for kind in ("Conv", "ConvTranspose")
        for d in (1, 2, 3)
    )
    assert not issubclass(torch.nn.Linear, _torch.Convolutions)


@of("suggest_memory_format")
def _():
    x = torch.ones(2, 3, 4, 4)
    assert _torch.suggest_memory_format(x) is torch.contiguous_format
    last = x.contiguous(memory_format=torch.channels_last)
    assert _torch.suggest_memory_format(last) is torch.channels_last


# --- torch.func --------------------------------------------------------------------------------


@of(
    *("is_functorch_tensor", "is_batchedtensor", "unwrapped", "batch_dim", "batch_level"),
    "add_batch_dim",
)
def _():
    seen = []

    def look(x):
        assert _torch.is_functorch_tensor(x) and _torch.is_batchedtensor(x)
        inner, level = _torch.unwrapped(x), _torch.batch_level(x)
        seen.append((inner.shape, _torch.batch_dim(x), level))
        return _torch.add_batch_dim(inner * 2, _torch.batch_dim(x), level)

    y = torch.func.vmap(look, in_dims=1)(torch.arange(6.0).view(2, 3))
    assert torch.equal(y, torch.arange(6.0).view(2, 3).T * 2)
    assert seen[0][:2] == (torch.Size((2, 3)), 1) and seen[0][2] >= 1
    assert not _torch.is_functorch_tensor(y)


@of("within_jvp")
def _():
    seen = []
    look = lambda x: seen.append(_torch.within_jvp()) or x * 1  # noqa: E731
    torch.func.jvp(look, (torch.ones(1),), (torch.ones(1),))
    torch.func.vmap(look)(torch.ones(1))
    assert seen == [True, False]


# --- the compiler: how graphs treat these is tested in test_regimes_compile, test_compiled_functions --------


@of("uncompiled", "called_by_graphs", "never_traced", "constant_to_dynamo")
def _():
    seen = []

    @_torch.uncompiled
    def apart(x):
        seen.append(torch.compiler.is_compiling())
        return x + 1

    @_torch.constant_to_dynamo
    def constant():
        seen.append(None)

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            seen.append(type(x))
            return x * 2

        @staticmethod
        def backward(ctx, d):
            return d * 2

    def method(x):
        seen.append("method")
        return x

    once = _torch.never_traced(method)
    assert _torch.never_traced(once) is None and once(1) == 1
    torch.compiler.reset()
    assert torch.compile(apart, backend="eager")(torch.ones(1)) == 2 and seen[-1] is False

    _torch.called_by_graphs(Twice)

    def call(x):
        constant()
        return Twice.apply(x)

    seen.clear()
    y = torch.compile(call, backend="eager", fullgraph=True)(torch.ones(1, requires_grad=True))
    assert y == 2 and None in seen and torch.Tensor in seen
    torch.compiler.reset()


# --- kernels -----------------------------------------------------------------------------------


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def gradients(function, *inputs, d=None):
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = function(*leaves)
    return torch.autograd.grad(y, leaves, torch.ones_like(y) if d is None else d)


X = torch.linspace(-2, 2, 24).view(2, 3, 4)


@of("unsafe_view", "to_copy")
def _():
    assert torch.equal(_torch.unsafe_view(X, (6, 4)), X.view(6, 4))
    assert not _torch.unsafe_view(X, (6, 4))._is_view()
    assert _torch.to_copy(X, dtype=torch.float64).dtype is torch.float64


@of("without_memory")
def _():
    class Own(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            raise AssertionError(func)

    made = _torch.without_memory(Own, (2, 3), dtype=torch.float64, device=torch.device("cpu"))
    assert type(made) is Own and made.shape == (2, 3) and made.dtype is torch.float64


@of("softmax_backward", "log_softmax_backward")
def _():
    d = X.flip(0)
    a, b = X.softmax(-1), X.log_softmax(-1)
    same(_torch.softmax_backward(d, a, -1, a.dtype), gradients(lambda x: x.softmax(-1), X, d=d)[0])
    found = _torch.log_softmax_backward(d, b, -1, b.dtype)
    same(found, gradients(lambda x: x.log_softmax(-1), X, d=d)[0])


@of("safe_softmax_kernel")
def _():
    S = torch.tensor([[0.0, math.log(3)], [-math.inf, -math.inf]])
    same(_torch.safe_softmax_kernel(S, -1), torch.tensor([[0.25, 0.75], [0.0, 0.0]]))


@of("hardtanh", "hardtanh_")
def _():
    assert torch.equal(_torch.hardtanh(X, -1, 1), X.clamp(-1, 1))
    z = X.clone()
    assert _torch.hardtanh_(z, -1, 1) is z and torch.equal(z, X.clamp(-1, 1))


@of("prelu_kernel", "prelu_backward")
def _():
    w = torch.full_like(X, 0.25)
    same(_torch.prelu_kernel(X, w), torch.where(X > 0, X, X / 4))
    dz, dw = _torch.prelu_backward(torch.ones_like(X), X, w)
    same(dz, torch.where(X > 0, 1.0, 0.25))
    same(dw, torch.where(X > 0, torch.zeros(()), X))


@of("adaptive_avg_pool2d_backward", "adaptive_avg_pool3d_backward")
def _():
    for d, backward in (
        (2, _torch.adaptive_avg_pool2d_backward),
        (3, _torch.adaptive_avg_pool3d_backward),
    ):
        x = torch.randn(1, 2, *(4,) * d)
        pool = getattr(functional, f"adaptive_avg_pool{d}d")
        dz = torch.randn(1, 2, *(2,) * d)
        same(backward(dz, x), gradients(lambda x, pool=pool: pool(x, 2), x, d=dz)[0])


@of("rms_norm_kernel", "rms_norm_backward_kernel")
def _():
    # Computed on GPUs alone; on this machine what comes out is known by its shape.
    device = "cuda" if torch.cuda.is_available() else "meta"
    x, d = X.to(device), X.flip(0).to(device)
    gamma, shape = torch.tensor([1.0, 2.0, 3.0, 4.0], device=device), [4]
    y, rstd = _torch.rms_norm_kernel(x, shape, gamma, 1e-5)
    found = _torch.rms_norm_backward_kernel(d, x, shape, rstd, gamma, [True, True])
    assert (y.shape, rstd.shape) == (x.shape, (2, 3, 1))
    assert [f.shape for f in found] == [x.shape, gamma.shape]
    if device == "meta":
        return
    same(rstd, (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt())
    same(y, x * rstd * gamma)
    formula = lambda x, g: x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * g  # noqa: E731
    for ours, expected in zip(found, gradients(formula, x, gamma, d=d), strict=True):
        same(ours, expected)


@of("batch_norm_kernel", "batch_norm_backward_kernel", "batch_norm_backend")
def _():
    x, gamma, beta = torch.randn(5, 3), torch.rand(3) + 1, torch.randn(3)
    mean, var = torch.zeros(3), torch.ones(3)
    y, mu, rstd, reserve, backend = _torch.batch_norm_kernel(
        x, gamma, beta, mean.clone(), var.clone(), True, 0.1, 1e-5, False
    )
    same(mu, x.mean(0))
    same(rstd, (x.var(0, unbiased=False) + 1e-5).rsqrt())
    same(y, (x - mu) * rstd * gamma + beta)
    chosen = _torch.batch_norm_backend(x, gamma, beta, mean, var, True, 1e-5)
    assert int(chosen) == backend
    d = torch.randn(5, 3)
    found = _torch.batch_norm_backward_kernel(
        backend, x, d, gamma, mean, var, mu, rstd, True, 1e-5, [True, True, True], reserve
    )

    def formula(x, gamma, beta):
        mu, var = x.mean(0), x.var(0, unbiased=False)
        return (x - mu) * (var + 1e-5).rsqrt() * gamma + beta

    for ours, expected in zip(found, gradients(formula, x, gamma, beta, d=d), strict=True):
        same(ours, expected)


@of("canonical_mask", "none_or_dtype")
def _():
    mask, like = torch.tensor([True, False]), torch.float32
    assert _torch.none_or_dtype(None) is None and _torch.none_or_dtype(mask) is torch.bool
    found = _torch.canonical_mask(mask, "mask", None, "", like, check_other=False)
    assert found.tolist() == [-math.inf, 0.0]


@of("attention_choice", "flash_attention", "flash_attention_backward")
def _():
    q, k, v = (torch.randn(2, 2, 5, 8) for _ in range(3))
    assert isinstance(_torch.attention_choice(q, k, v, None, 0.0, False), int)

    def formula(q, k, v):
        return torch.softmax(q @ k.mT / math.sqrt(8), -1) @ v

    o, lse = _torch.flash_attention(q, k, v, 0.0, False)
    same(o, formula(q, k, v))
    d = torch.randn_like(o)
    found = _torch.flash_attention_backward(d, q, k, v, o, lse, 0.0, False)
    for ours, expected in zip(found, gradients(formula, q, k, v, d=d), strict=True):
        same(ours, expected)
