"""What follows from what an op states: which formula runs when, what is saved, what is given out."""

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import manualnn
from manualnn import Function

CALLS = []


class Scale(Function):
    """z = x ∗ w, with a kernel that says that it ran."""

    outputs = 1

    @staticmethod
    def forward(x, w, power=1, *rest):
        return x * w**power, x.detach() + 1

    @staticmethod
    def save(needs, output, x, w, power=1, *rest):
        CALLS.append(needs)
        return (x if needs.w else None, w), (power,)

    @staticmethod
    def gradients(needs, dz, x, w, power):
        CALLS.append("formula")
        dx = dz * w**power if needs.x else None
        dw = (dz * x * power * w ** (power - 1)).sum_to_size(w.shape) if needs.w else None
        return dx, dw

    @staticmethod
    def kernel_gradients(needs, dz, x, w, power):
        CALLS.append("kernel")
        return Scale.gradients(needs, dz, x, w, power)

    @staticmethod
    def tangent(step, x, w, power):
        terms = [] if step.x is None else [step.x * w**power]
        return sum(terms if step.w is None else [*terms, x * power * w ** (power - 1) * step.w])

    @staticmethod
    def recompute(inputs, output):
        CALLS.append(len(output))
        _, w, *power = inputs
        return (lambda more, w: (more - 1) * w ** (power or [1])[0]), (
            output[1],
            w.detach().clone(),
        )

    @staticmethod
    def example_inputs():
        return torch.randn(4, 3), torch.randn(3)


def tensors(*needs):
    torch.manual_seed(0)
    made = torch.randn(4, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    return [t.requires_grad_(need) for t, need in zip(made, needs or (True, True), strict=True)]


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


def test_the_kernel_serves_while_nothing_differentiates_and_the_formula_otherwise():
    x, w = tensors()
    (z,) = Scale.apply(x, w)
    torch.autograd.grad(z.sum(), x, retain_graph=True)
    assert CALLS[-2:] == ["kernel", "formula"]
    CALLS.clear()
    torch.autograd.grad(z.sum(), x, create_graph=True)
    assert CALLS == ["formula"]
    CALLS.clear()
    torch.func.grad(lambda x: Scale.apply(x, w)[0].sum())(x)
    assert "kernel" not in CALLS and "formula" in CALLS


def test_a_kernel_that_has_derivatives_always_serves():
    class Always(Scale):
        kernel_has_derivatives = True

    x, w = tensors()
    torch.autograd.grad(Always.apply(x, w)[0].sum(), x, create_graph=True)
    assert CALLS[-2:] == ["kernel", "formula"]


def test_each_need_bears_its_inputs_name():
    x, w = tensors(True, False)
    Scale.apply(x, w, 2, "more", "still more")
    (needs,) = CALLS
    assert (needs.x, needs.w, needs.power, needs.rest) == (True, False, False, (False, False))


def test_only_what_a_needed_gradient_reads_is_saved():
    x, w = tensors(True, False)
    (z,) = Scale.apply(x, w)
    saved, _ = z.grad_fn.saved_tensors
    assert saved is None
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.detach(), torch.ones_like(x))
        step = forward_ad.unpack_dual(Scale.apply(dual, w)[0]).tangent
    torch.testing.assert_close(step, w.expand(4, 3))
    assert CALLS[-1][:2] == (True, True)  # what the tangent reads, too


def test_what_exists_for_backward_alone_is_not_given_out():
    x, w = tensors()
    assert len(Scale.apply(x, w)) == 1
    assert len(torch.func.vmap(Scale.apply, (0, None))(x, w)) == 1
    with manualnn.memory.Recorder().recording():
        assert len(Scale.apply(x, w)) == 1
    assert CALLS[-1] == 2  # of it a recipe may be made


def test_every_regime():
    x, w = tensors()
    assert gradcheck(lambda *t: Scale.apply(*t, 2)[0], (x, w), check_forward_ad=True)
    assert gradgradcheck(lambda *t: Scale.apply(*t, 3)[0], (x, w), check_fwd_over_rev=True)
    report = manualnn.check(Scale)
    # It counts its calls, which the compiler refuses to look into.
    assert [line.name for line in report.lines if line.status in ("failed", "not supported")] == [
        "compile"
    ]


@pytest.mark.parametrize("alone", [False, True])
def test_where_nothing_flows_back_the_answer_is_none(alone):
    class Two(Function):
        @staticmethod
        def forward(x):
            return x * 2, x * 3

        @staticmethod
        def gradients(needs, dy, dz):
            found = [t * k for t, k in ((dy, 2), (dz, 3)) if t is not None]
            CALLS.append(len(found))
            return sum(found)

    x, _ = tensors()
    y, z = Two.apply(x)
    undefined = torch._C._functions.UndefinedGrad()
    out = undefined(y) if alone else y + 0 * undefined(z)
    (dx,) = torch.autograd.grad(out.sum(), x, allow_unused=True)
    assert dx is None if alone else torch.equal(dx, torch.full_like(x, 2))
    assert CALLS == ([] if alone else [1])


def test_a_zero_without_memory_is_given_memory():
    class Into(Function):
        @staticmethod
        def forward(x):
            return x * 1

        @staticmethod
        def gradients(needs, dz):
            return dz.mul_(1)

    x = torch.ones(2, requires_grad=True)
    zero = torch._efficientzerotensor(2)
    (dx,) = torch.autograd.grad(Into.apply(x), x, zero)
    assert torch.equal(dx, torch.zeros(2))


def test_backward_in_the_dtypes_that_forward_saw():
    class Product(Function):
        @staticmethod
        def forward(x, w):
            return x @ w

        @staticmethod
        def save(needs, z, x, w):
            return (w,), ()

        @staticmethod
        def gradients(needs, dz, w):
            return dz @ w.T

    x, w = torch.ones(2, 3, requires_grad=True), torch.ones(3, 4)
    z = Product.apply(x, w)
    with torch.autocast("cpu", torch.bfloat16):
        (dx,) = torch.autograd.grad(z.sum(), x)
    assert dx.dtype is torch.float32


@pytest.mark.parametrize("eager_alone", [False, True])
def test_under_the_compiler_a_kernel_for_eager_mode_gives_way(eager_alone):
    class Doubled(Function):
        @staticmethod
        def forward(x):
            return x * 2

        @staticmethod
        def gradients(needs, dz):
            return dz * 2

        @staticmethod
        def kernel_gradients(needs, dz):
            return dz * 4  # not the formula, to be told from it

    if eager_alone:

        class Doubled(Doubled):
            @staticmethod
            def layout(needs, z, x):
                return ()

    torch.compiler.reset()
    x = torch.ones(3, requires_grad=True)
    for function, slope in (
        (Doubled.apply, 4),
        (torch.compile(Doubled.apply, backend="aot_eager"), 2 if eager_alone else 4),
    ):
        assert torch.autograd.grad(function(x).sum(), x)[0].tolist() == [slope] * 3


def test_either_the_gradients_or_pytorchs_form():
    with pytest.raises(TypeError, match="Both states gradients, from which backward follows"):

        class Both(Function):
            @staticmethod
            def forward(x):
                return x

            @staticmethod
            def gradients(needs, dz):
                return dz

            @staticmethod
            def backward(ctx, dz):
                return dz


def test_pytorchs_form_may_have_helpers_of_these_names():
    class Own(Function):
        outputs = 1

        @staticmethod
        def forward(x):
            return x * 2, x * 3

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, dy, dz):
            return Own.gradients(dy, dz)

        @staticmethod
        def gradients(dy, dz):
            return 2 * dy + 3 * dz

    x = torch.ones(2, requires_grad=True)
    for apply in (Own.apply, torch.func.vmap(Own.apply)):
        y, z = apply(x)
        assert torch.autograd.grad(y.sum() + z.sum(), x)[0].tolist() == [5, 5]


@pytest.mark.parametrize("inputs", [(1.0,), (1.0, 2), (1.0, 2, 3, 4)])
def test_inputs_with_defaults_and_any_number_more(inputs):
    class Many(Function):
        @staticmethod
        def forward(x, factor=2, *more, never=0):
            return x * factor

        @staticmethod
        def save(needs, z, x, factor=2, *more):
            assert needs.x and needs.more == (False,) * len(more)
            return (), (factor,)

        @staticmethod
        def gradients(needs, dz, factor):
            return dz * factor

    x = torch.ones((), requires_grad=True)
    factor = inputs[1] if len(inputs) > 1 else 2
    for apply in (Many.apply, torch.compile(Many.apply, backend="aot_eager")):
        assert torch.autograd.grad(apply(x, *inputs[1:]), x)[0] == factor
    assert torch.func.grad(lambda x: Many.apply(x, *inputs[1:]))(x) == factor


def test_a_built_in_function_as_forward():
    class Sine(Function):
        forward = staticmethod(torch.sin)

        @staticmethod
        def save(needs, z, x):
            return (x,), ()

        @staticmethod
        def gradients(needs, dz, x):
            return dz * x.cos()

    x = torch.ones((), requires_grad=True)
    assert torch.autograd.grad(Sine.apply(x), x)[0] == x.cos()


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("call", ["eager", "vmap", "jvp"])
def test_outputs_of_a_forward_that_returns_one_tensor_are_refused(call, grad):
    """Or the tensor itself would be cut off after its first row."""

    class One(Function):
        outputs = 1

        @staticmethod
        def forward(x):
            return x * 2

        @staticmethod
        def gradients(needs, dz):
            return dz * 2

        @staticmethod
        def tangent(step):
            return step.x * 2

    x = torch.ones(4, 3, requires_grad=grad)
    calls = {
        "vmap": torch.func.vmap(One.apply),
        "jvp": lambda x: torch.func.jvp(One.apply, (x,), (x,)),
    }
    with pytest.raises(TypeError, match="One states outputs = 1, but its forward returns no tuple"):
        calls.get(call, One.apply)(x)


@pytest.mark.parametrize("call", ["eager", "vmap"])
@pytest.mark.parametrize(
    "wrong", [lambda x, w: (x, w), lambda x, w: ((x, w), w), lambda x, w: (x, ())]
)
def test_two_tensors_in_place_of_two_tuples_are_refused(wrong, call):
    """Or their rows would be saved."""

    class Rows(Function):
        @staticmethod
        def forward(x, w):
            return x * w

        @staticmethod
        def save(needs, z, x, w):
            return wrong(x, w)

        @staticmethod
        def gradients(needs, dz, x, w):
            return dz * w, (dz * x).sum(0)

    x, w = torch.ones(1, 1, 1, requires_grad=True), torch.ones(1, 1, requires_grad=True)
    apply = torch.func.vmap(Rows.apply, (0, None)) if call == "vmap" else Rows.apply
    with pytest.raises(TypeError, match="Rows.save should return two tuples"):
        apply(x, w)


def test_the_old_name_of_recompute_works_and_warns():
    with pytest.warns(DeprecationWarning, match="Old.again is called recompute now"):

        class Old(Function):
            @staticmethod
            def forward(x):
                return x * 1

            @staticmethod
            def gradients(needs, dz):
                return dz

            @staticmethod
            def again(inputs, output):
                return (lambda x: x * 1), inputs

    assert Old.recompute((1,), 1)[0](1) == 1


@pytest.mark.parametrize(
    "save",
    [
        lambda needs, z, s, x, y: ((x, y), ()),  # an argument an output
        lambda needs, z, s, *inputs: ((s, *inputs), ()),  # s would be x
        lambda needs, output, y, x: ((x, y), ()),
        lambda needs, output, x: ((x,), ()),
        lambda needs, output: ((), ()),
    ],
)
def test_inputs_under_other_names_are_refused(save):
    body = {
        "forward": staticmethod(lambda x, y: x * y),
        "save": staticmethod(save),
        "gradients": staticmethod(lambda needs, dz, x, y: (dz * y, dz * x)),
    }
    with pytest.raises(
        TypeError, match=r"Gate\.save takes .*, should take \(needs, output, x, y\)"
    ):
        type(Function)("Gate", (Function,), body)


def test_what_forward_takes_together_may_be_named():
    class Product(Function):
        @staticmethod
        def forward(*inputs):
            return inputs[0] * inputs[1]

        @staticmethod
        def save(needs, z, x, y):
            return (x, y), ()

        @staticmethod
        def gradients(needs, dz, x, y):
            return dz * y, dz * x

    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(Product.apply, (x, x.detach().exp().requires_grad_()))


def test_inputs_may_be_taken_together():
    class Total(Function):
        @staticmethod
        def forward(x, *others):
            return x + sum(others)

        @staticmethod
        def save(needs, z, *inputs):
            return (), (len(inputs),)

        @staticmethod
        def gradients(needs, dz, count):
            return (dz,) * count

    x = torch.ones(2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(Total.apply, (x, 2 * x.detach(), x))
