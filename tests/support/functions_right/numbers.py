"""Right, with numbers that mislead: dtypes, sizes, curvature, complex numbers, gradients zero by nature."""

import torch
from catalogue import Entry, enter, given, normal, normals
from torch.autograd import Function

import manualnn

ENTRIES: list[Entry] = []
right = enter(ENTRIES)


@right("it_computes_in_float32", "float32 inside, any dtype outside", normals((4, 3)))
class Float32Inside(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.float().tanh().to(x.dtype)

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        return (dz.float() * (1 - x.float().tanh().square())).to(dz.dtype)


@right("it_takes_float32_only", "refuses float64", normals((4, 3)))
class Float32Only(Function):
    @staticmethod
    def forward(ctx, x):
        if x.dtype != torch.float32:
            raise TypeError(f"expected float32, got {x.dtype}")
        ctx.save_for_backward(x)
        return x.sigmoid()

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return dz * s * (1 - s)


@right("a_declared_straight_through_rounding", "surrogate", normals((4, 3)))
class Round(manualnn.Function):
    surrogate = "straight-through: rounding has no slope to follow"

    @staticmethod
    def forward(x):
        return x.round()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, dz):
        return dz

    @staticmethod
    def jvp(ctx, x_dot):
        return x_dot


@right("a_complex_product", "complex", normals((4,), (4,), dtype=torch.complex64))
class ComplexProduct(Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, dz):
        a, b = ctx.saved_tensors
        return dz * b.conj(), dz * a.conj()


@right("a_great_curvature", "curvature", given(normal(4, 3) / 10))
def steep(x):
    return (40 * x).exp()


@right("a_fast_wave", "periodic", normals((4, 3)))
class FastWave(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (1000 * x).sin()

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        return 1000 * dz * (1000 * x).cos()


@right("an_output_of_the_size_1e-30", "tiny output", normals((4, 3)))
class Tiny(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 1e-30 * x.square()

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        return 2e-30 * x * dz


@right("an_output_of_the_size_1e30", "huge output", normals((4, 3)))
class Huge(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 1e30 * x.sin()

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        return 1e30 * x.cos() * dz


# The factor reads one triangle; of the symmetric part, so that every element counts.
@right(
    "a_cholesky_factor_of_the_symmetric_part",
    "symmetric matrix",
    given(normal(3, 3) / 4 + 2 * torch.eye(3)),
)
def cholesky(A):
    return torch.linalg.cholesky((A + A.mT) / 2)


@right("a_shift_that_softmax_does_not_see", "gradient zero by nature", normals((4, 3), (4, 1)))
def shifted_softmax(x, shift):
    return (x + shift).softmax(1)


@right(
    "the_power_of_a_complex_signal",
    "real function of complex numbers",
    normals((5,), dtype=torch.complex64),
)
class Power(Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z.real.square() + z.imag.square()

    @staticmethod
    def backward(ctx, dy):
        (z,) = ctx.saved_tensors
        return 2 * dy * z


@right("eigenvalues_of_the_symmetric_part", "symmetric matrix", normals((4, 4)))
def eigenvalues(A):
    return torch.linalg.eigvalsh(A + A.mT)


@right("a_gradient_reversed_on_purpose", "surrogate of one input", normals((4, 3), (3,)))
class Reversed(manualnn.Function):
    surrogate = {"x": "reversed: the features are to be of no use to the second head"}

    @staticmethod
    def forward(x, gain):
        return x * gain

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, dz):
        x, gain = ctx.saved_tensors
        return -dz * gain, (dz * x).sum(0)


@right("a_transposed_input", "an input with strides", lambda: ((torch.randn(4, 3).t(),), {}))
def sine_of_a_transposed_input(x):
    return torch.sin(x)


@right(
    "the_sum_of_a_softmax",
    "zero by nature, all of it",
    lambda: ((torch.randn(4, 6),), {}),
)
def sum_of_a_softmax(x):
    return x.softmax(-1).sum()


@right("the_sum_of_a_norm", "an output that is rounding alone", normals((4, 6)))
def sum_of_a_norm(x):
    return torch.nn.functional.layer_norm(x, (6,)).sum()


@right("the_variance_of_equal_numbers", "an output and a slope of zero", given(torch.ones(4, 6)))
def variance(x):
    return x.var(1)


@right("a_logarithm_far_out", "a step that is lost in the rounding", given(torch.full((3,), 1e8)))
def logarithm(x):
    return torch.log1p(x)


@right("the_second_smallest", "PyTorch's own way with NaN", normals((4, 6)))
def second_smallest(x):
    return x.kthvalue(2, 1).values
