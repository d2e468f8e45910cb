"""Ensembles, functional_call, batches of gradients, parts of the gradients, hooks: as torch's twins."""

import copy
import itertools

import pytest
import torch
from battery import call, differentiated, each_op, leaves, sample
from ops import OPS
from regimes_cases import CASES, WRITING, assert_same, blocks, each, each_case, incoming, step
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

from manualnn import Function, nn
from manualnn import functional as F

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_every_module_has_a_case():
    classes = {n: vars(nn)[n] for n in nn.__all__ if isinstance(vars(nn)[n], type)}
    own = {n for n, made in classes.items() if made.__module__.startswith("manualnn.")}
    # A Case has one floating input and one output; test_multi_head.py and test_embedding.py have these.
    assert own - {"Embedding", "MultiheadAttention"} == {case.name for case in CASES}


# --- transforms within transforms ---------------------------------------------------------------

NESTINGS = [
    n for depth in (1, 2, 3) for n in itertools.product(("vmap", "jvp", "grad"), repeat=depth)
]
NESTED = (
    "dropout1d linear MLP conv1d layer_norm l1_loss cross_entropy "  # each lost in its own way by PyTorch
    "sigmoid prelu log_softmax dropout max_pool1d group_norm batch_norm embedding matmul "
    "scaled_dot_product_attention multi_head_attention_forward"
).split()
EACH_NESTED = [(name, n) for name in NESTED for n in NESTINGS if len(n) < 3 or name in NESTED[:7]]


def nested(function, nesting):
    """The function in transforms, the outermost first; of a tensor to a tensor."""
    if not nesting:
        return function
    inner = nested(function, nesting[1:])

    def total(x):
        y = inner(x)
        return (y.sin() * torch.linspace(0.5, 1, y.numel(), dtype=y.dtype).view_as(y)).sum()

    return {
        "vmap": lambda x: vmap(inner, randomness="same")(torch.stack([x, x * 0.5 + 0.1, x * 0.9])),
        "jvp": lambda x: jvp(inner, (x,), (x.cos(),))[1],
        "grad": lambda x: grad(total)(x),
    }[nesting[0]]


@pytest.mark.parametrize(
    ("name", "nesting"), EACH_NESTED, ids=lambda n: n if isinstance(n, str) else " of ".join(n)
)
def test_transforms_within_transforms(name, nesting):
    """PyTorch's rule for vmap loses batch dimensions where backward and jvp keep different tensors."""
    op = next(op for op in OPS if op.name == name)
    tensors = sample(op)
    at = next(i for i, t in enumerate(tensors) if t.is_floating_point())

    def of(function):
        def run(x):
            return function(*(x if i == at else t for i, t in enumerate(tensors)))

        torch.manual_seed(0)
        return nested(run, nesting)(tensors[at])

    got = of(op.ours)
    with torch.nn.attention.sdpa_kernel(
        torch.nn.attention.SDPBackend.MATH
    ):  # torch's flash has no jvp
        want = of(op.reference)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


class Partly(Function):
    """a = s x, b = Σ s x; keeps s for backward, and x, s for forward mode; b counts as constant. s: a list."""

    @staticmethod
    def forward(x, s, factors):
        return x * s * factors[0][1], (x * s).sum()

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, s, ctx.factors = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(s, x)
        ctx.save_for_forward(x, s)

    @staticmethod
    def backward(ctx, da, db):
        s, x = ctx.saved_tensors
        f = ctx.factors[0][1]
        return f * da * s, (f * da * x).sum_to_size(s.shape), None

    @staticmethod
    def jvp(ctx, dx, ds, _):
        x, s = ctx.saved_tensors
        f = ctx.factors[0][1]
        return f * (0 if dx is None else dx * s) + f * (0 if ds is None else x * ds), None


@pytest.mark.parametrize("nesting", NESTINGS, ids=lambda n: " of ".join(n))
def test_transforms_of_a_function_of_ones_own(nesting):
    torch.manual_seed(0)
    x, s = torch.randn(3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    for of_x in (True, False):  # only one of the two is batched, which tells them apart

        def ours(t, of_x=of_x):
            return Partly.apply(*((t, s) if of_x else (x, t)), [(1, 3.0, 4)])[0]

        got = nested(ours, nesting)(x if of_x else s)
        want = nested(lambda t, of_x=of_x: t * (s if of_x else x) * 3.0, nesting)(x if of_x else s)
        torch.testing.assert_close(got, want)


# --- ensembles ---------------------------------------------------------------------------------


def ensemble(models, tensors):
    """Outputs and the gradients of parameters and input of all models at once."""
    params, buffers = stack_module_state(models)
    params = {k: v.detach() for k, v in params.items()}
    skeleton = copy.deepcopy(models[0]).to("meta")

    def one(params, buffers, x, *rest):
        out = functional_call(skeleton, (params, buffers), (x, *rest))
        return (out * out.detach().cos()).sum(), out

    dims = (0, 0) + (0,) * len(tensors)
    (dparams, dx), out = vmap(grad(one, argnums=(0, 2), has_aux=True), in_dims=dims)(
        params, buffers, *tensors
    )
    return out, dx, *dparams.values()


@each_case
def test_an_ensemble(case):
    # In evaluation: a mask drawn inside vmap is compared in test_randomness.py.
    pairs = [case.pair(training=False, seed=s) for s in range(3)]
    tensors = [torch.stack(ts) for ts in zip(*(case.sample(seed=s) for s in range(3)), strict=True)]
    ours = ensemble([mine for mine, _ in pairs], tensors)
    if case.name == "RReLU":  # torch's own refuses vmap, even where nothing is drawn
        theirs = [step_of_one(other, [t[i] for t in tensors]) for i, (_, other) in enumerate(pairs)]
        theirs = [torch.stack(ts) for ts in zip(*theirs, strict=True)]
    else:
        theirs = ensemble([other for _, other in pairs], tensors)
    assert_same(ours, theirs, case.close)


def step_of_one(module, tensors):
    x, *rest = tensors
    x = x.clone().requires_grad_()
    out = module(x, *rest)
    wrt = [x, *module.parameters()]
    return out.detach(), *torch.autograd.grad((out * out.detach().cos()).sum(), wrt)


def test_an_ensemble_of_converted_models():
    pairs = [blocks() for _ in range(3)]
    for i, (mine, other) in enumerate(pairs):
        for p, q in zip(mine.parameters(), other.parameters(), strict=True):
            p.data.mul_(1 + i / 2)
            q.data.mul_(1 + i / 2)
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    ours = ensemble([mine for mine, _ in pairs], [x])
    assert_same(ours, ensemble([other for _, other in pairs], [x]))
    assert not torch.equal(ours[0][0], ours[0][1])


@pytest.mark.parametrize("dims", [(None, 0, 0), (0, None, 0), (0, 0, None), (1, 0, 0)], ids=str)
def test_vmap_over_the_weights_of_linear(dims):
    torch.manual_seed(0)
    tensors = [torch.randn(3, 3, 6), torch.randn(3, 5, 6), torch.randn(3, 5)]
    tensors = [t[0] if d is None else t for t, d in zip(tensors, dims, strict=True)]

    def gradients(linear):
        loss = grad(lambda *t: linear(*t).square().sum(), argnums=(0, 1, 2))
        return vmap(linear, dims)(*tensors), *vmap(loss, dims)(*tensors)

    assert_same(gradients(F.linear), gradients(torch.nn.functional.linear), 1e-5)


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("dims", [(None, 0), (0, None), (0, 0)], ids=str)
def test_vmap_over_the_slopes_of_prelu(channels, dims):
    torch.manual_seed(0)
    z, w = torch.randn(3, 4, 5).double(), torch.rand(3, channels).double()
    tensors = [z[0] if dims[0] is None else z, w[0] if dims[1] is None else w]

    def gradients(prelu):
        loss = grad(lambda *t: prelu(*t).square().sum(), argnums=(0, 1))
        return vmap(prelu, dims)(*tensors), *vmap(loss, dims)(*tensors)

    assert_same(gradients(F.prelu), gradients(torch.nn.functional.prelu))


# --- functional_call ---------------------------------------------------------------------------


class Tied(torch.nn.Module):
    """Two layers with one weight, between them an activation with a parameter."""

    def __init__(self, nn):
        super().__init__()
        self.a, self.b, self.g = nn.Linear(6, 6), nn.Linear(6, 6), nn.PReLU()
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.g(self.a(x)))


@pytest.mark.parametrize("tie_weights", [True, False])
def test_functional_call_with_tied_weights(tie_weights):
    torch.manual_seed(0)
    mine = Tied(nn).double()
    other = Tied(torch.nn).double()
    other.load_state_dict(mine.state_dict())
    new = {k: torch.randn_like(v) for k, v in mine.named_parameters()}
    assert list(new) == ["a.weight", "a.bias", "b.bias", "g.weight"]
    x = torch.randn(4, 6, dtype=torch.float64)

    def run(model):
        def loss(params):
            out = functional_call(model, params, (x,), tie_weights=tie_weights)
            return out.square().sum()

        return loss(new), *grad(loss)(new).values()

    assert_same(run(mine), run(other))
    if tie_weights:  # the one given weight serves both layers
        hand = F.linear(
            F.prelu(F.linear(x, new["a.weight"], new["a.bias"]), new["g.weight"]),
            new["a.weight"],
            new["b.bias"],
        )
        torch.testing.assert_close(run(mine)[0], hand.square().sum())


@each_case
def test_functional_call_leaves_the_module_as_it_was(case):
    mine, other = case.pair(training=False)
    tensors = case.sample()
    before = {k: v.clone() for k, v in mine.state_dict().items()}
    new = {k: v.detach() + 0.3 for k, v in mine.named_parameters()}
    assert_same([functional_call(mine, new, tensors)], [functional_call(other, new, tensors)])
    assert all(torch.equal(v, before[k]) for k, v in mine.state_dict().items())


# --- autograd.grad -----------------------------------------------------------------------------


@each_op
def test_a_batch_of_incoming_gradients(op):
    def batched(function):
        tensors = leaves(op, sample(op))
        out = call(op, function, tensors)
        d_out = torch.stack([incoming(out, seed) for seed in range(3)])
        wrt = differentiated(tensors)
        return torch.autograd.grad(
            out, wrt, d_out, is_grads_batched=True, allow_unused=True, materialize_grads=True
        )

    assert_same(batched(op.ours), batched(op.reference), 1e-12 * op.torch_off)


@pytest.mark.parametrize("name", ["dropout", "alpha_dropout", "dropout2d"])
def test_a_batch_of_incoming_gradients_through_a_mask_of_bits(name):
    x = torch.randn(20, 20, 4, 4, dtype=torch.float64)  # large enough to be packed

    def batched(functional):
        z = x.clone().requires_grad_()
        torch.manual_seed(0)
        out = getattr(functional, name)(z, 0.3, True)
        d_out = torch.stack([incoming(out, seed) for seed in range(3)])
        return torch.autograd.grad(out, z, d_out, is_grads_batched=True)

    assert_same(batched(F), batched(torch.nn.functional))


@each_op
def test_gradients_of_some_of_the_inputs(op):
    """All inputs need a gradient; asked for are some."""

    def some(function, i):
        tensors = leaves(op, sample(op))
        out = call(op, function, tensors)
        (got,) = torch.autograd.grad(out, differentiated(tensors)[i], incoming(out))
        return got

    for i in range(len(differentiated(leaves(op, sample(op))))):
        assert_same([some(op.ours, i)], [some(op.reference, i)], 1e-12 * op.torch_off)


class Stops(torch.autograd.Function):
    """Nothing flows back through it."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, d):
        return None


@each_op
def test_no_gradient_is_none_and_not_zero(op):
    """An optimizer with weight decay moves a parameter whose gradient is zero, and leaves one that has none."""
    tensors = leaves(op, sample(op))
    out = call(op, op.ours, [t * 1 if t.requires_grad else t for t in tensors])
    Stops.apply(out).sum().backward()
    assert all(t.grad is None for t in tensors)


def test_one_of_two_gradients_that_is_not_there_is_zero():
    """Of a Function of one's own; of ours the norms, dropout and the losses give out what is kept as well."""
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    s = torch.ones(4, dtype=torch.float64)
    both = []

    class Both(Partly):
        @staticmethod
        def setup_context(ctx, inputs, output):
            x, s, ctx.factors = inputs
            ctx.save_for_backward(s, x)

        @staticmethod
        def backward(ctx, da, db):
            both.extend((da, db))
            return 3 * da + db, None, None

    a, total = Both.apply(x, s, [(1, 3.0, 4)])
    (dx,) = torch.autograd.grad(Stops.apply(a).sum() + total, x)
    assert torch.equal(dx, torch.ones_like(x)) and torch.equal(both[0], torch.zeros_like(x))
    a, total = Both.apply(x, s, [(1, 3.0, 4)])
    (dx,) = torch.autograd.grad(a.sum(), x)
    assert torch.equal(dx, torch.full_like(x, 3)) and torch.equal(both[3], torch.zeros(()).double())


@pytest.mark.parametrize("keep", [[0], [1, 4], [5], [2, 3]], ids=str)
def test_backward_into_some_of_the_parameters(keep):
    mine, other = blocks()
    x = torch.randn(4, 6, dtype=torch.float64)
    for model in (mine, other):
        inputs = [p for i, p in enumerate(model.parameters()) if i in keep]
        model(x).square().sum().backward(inputs=inputs)
    ours = [p.grad for p in mine.parameters()]
    assert [i for i, g in enumerate(ours) if g is not None] == keep
    assert_same(ours, [p.grad for p in other.parameters()])


# --- hooks -------------------------------------------------------------------------------------


def hooked(module, tensors):
    """Everything that hooks see, and the gradients that they have changed."""
    seen = []

    def note(*values):
        for v in values:
            for t in v if isinstance(v, tuple) else (v,):
                seen.append(None if t is None else t.detach().clone())

    def before(module, args):
        note(args)
        return (args[0] * 0.9, *args[1:])

    def after(module, args, out):
        note(args, out)
        return out * 1.1

    def before_backward(module, d_out):
        note(d_out)
        return tuple(d * 1.2 for d in d_out)

    def after_backward(module, d_in, d_out):
        note(d_in, d_out)
        return tuple(d if d is None or not d.is_floating_point() else d * 1.3 for d in d_in)

    handles = [
        module.register_forward_pre_hook(before),
        module.register_forward_hook(after),
        module.register_full_backward_pre_hook(before_backward),
        module.register_full_backward_hook(after_backward),
    ]
    x, *rest = (t.detach().clone() for t in tensors)
    x.requires_grad_()
    z = x * 1
    z.register_hook(lambda d: note(d))
    torch.manual_seed(7)
    out = module(z, *rest)
    out.register_hook(lambda d: d * 1.4)
    out.grad_fn.register_prehook(lambda d: note(d))
    out.grad_fn.register_hook(lambda d_in, d_out: note(d_in[0]))
    out.backward(incoming(out))
    for handle in handles:
        handle.remove()
    return seen, [x.grad, *(p.grad for p in module.parameters())]


@each_case
def test_hooks(case):
    mine, other = case.pair()
    (seen, grads), (their_seen, their_grads) = (hooked(m, case.sample()) for m in (mine, other))
    assert len(seen) >= 9
    assert_same(seen, their_seen, case.close)
    assert_same(grads, their_grads, case.close)
    for p in (*mine.parameters(), *other.parameters()):
        p.grad = None
    assert_same(
        step(mine, case.sample()), step(other, case.sample()), case.close
    )  # the hooks are gone


@each(WRITING)
def test_a_module_that_writes_over_its_input_refuses_backward_hooks_as_torchs(case):
    errors = []
    for module in case.pair():
        with pytest.raises(RuntimeError) as error:
            hooked(module, case.sample())
        errors.append(str(error.value))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("where", ["each layer", "the whole"])
def test_hooks_in_a_network(where):
    mine = nn.MLP([6, 5, 4], "tanh").double()
    other = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4))
    other.double().load_state_dict(mine.state_dict())
    x = torch.randn(3, 6, dtype=torch.float64)
    results = []
    for model in (mine, other):
        seen = []
        for m in model if where == "each layer" else [model]:
            m.register_full_backward_hook(lambda m, i, o, seen=seen: seen.extend((*i, *o)))
            m.register_forward_hook(lambda m, i, o, seen=seen: seen.append(o.detach()))
        results.append((seen, step(model, [x])))
    assert len(results[0][0]) == (9 if where == "each layer" else 3)
    assert_same(results[0][0], results[1][0])
    assert_same(results[0][1], results[1][1])
