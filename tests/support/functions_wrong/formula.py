"""Wrong formulas: a factor, a sign, a rule of the chain left out."""

import torch
from catalogue import Entry, enter, normals
from torch.autograd import Function

ENTRIES: list[Entry] = []
wrong = enter(ENTRIES)
ANY = (r"analytic|numeric|central differences",)


@wrong(
    "the_loss_is_divided_by_the_batch_twice",
    "divided by the batch twice",
    normals((4, 3), (4, 3)),
    r"batch",
    r"4\b.* too small",
)
class HalfSquares(Function):
    @staticmethod
    def forward(ctx, y, target):
        ctx.save_for_backward((y - target) / len(y))
        return (y - target).square().sum() / (2 * len(y))

    @staticmethod
    def backward(ctx, dz):
        (dy,) = ctx.saved_tensors
        return dz * dy / len(dy), -dz * dy / len(dy)


@wrong("the_cosine_goes_up", "sign", normals((4, 3)), r"sign|negat|minus")
class Cosine(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.cos()

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        return dz * x.sin()


# The derivative in terms of z, given a.
@wrong(
    "the_derivative_of_tanh_is_taken_at_its_output",
    "g'(a) for g'(z)",
    normals((4, 3)),
    r"output",
    *ANY,
)
class Tanh(Function):
    @staticmethod
    def forward(ctx, z):
        a = z.tanh()
        ctx.save_for_backward(a)
        return a

    @staticmethod
    def backward(ctx, da):
        (a,) = ctx.saved_tensors
        return da * (1 - a.tanh().square())


# Textbook code takes softmax for an elementwise function.
@wrong(
    "softmax_has_a_diagonal_jacobian", "coupling left out", normals((4, 3)), r"diagonal|coupl", *ANY
)
class Softmax(Function):
    @staticmethod
    def forward(ctx, x):
        y = x.softmax(1)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, dy):
        (y,) = ctx.saved_tensors
        return dy * y * (1 - y)


# The mean and the variance depend on x too.
@wrong(
    "a_norm_takes_its_statistics_for_constants", "statistics as constants", normals((4, 6)), *ANY
)
class LayerNorm(Function):
    @staticmethod
    def forward(ctx, x):
        mean, deviation = x.mean(1, keepdim=True), x.std(1, keepdim=True)
        ctx.save_for_backward(deviation)
        return (x - mean) / deviation

    @staticmethod
    def backward(ctx, dy):
        (deviation,) = ctx.saved_tensors
        return dy / deviation


# Covariances, attention biases: y = (A + Aᵀ)/2 needs the symmetric part of dy.
@wrong(
    "the_symmetric_part_is_not_taken_of_the_gradient",
    "symmetry",
    normals((3, 3)),
    r"symmetr|transpos",
    *ANY,
)
class Half(Function):
    @staticmethod
    def forward(ctx, A):
        return (A + A.T) / 2

    @staticmethod
    def backward(ctx, dy):
        return dy.clone()


# qixianbiao/RNN#2: the error does not flow from a step to the one before it.
@wrong(
    "a_recurrence_forgets_the_steps_before", "gradient through time cut", normals((6,), ()), *ANY
)
class Recurrence(Function):
    @staticmethod
    def forward(ctx, x, w):
        h, states = torch.zeros_like(w), []
        for step in x:
            h = (step + w * h).tanh()
            states.append(h)
        ctx.save_for_backward(w, torch.stack(states))
        return torch.stack(states)

    @staticmethod
    def backward(ctx, dh):
        _, h = ctx.saved_tensors
        dx = dh * (1 - h.square())
        return dx, (dx[1:] * h[:-1]).sum()


# Quantisers; check is to ask whether it is meant.
@wrong(
    "an_undeclared_straight_through_rounding",
    "straight-through estimator, not declared",
    normals((4, 3)),
    r"flat|straight.through|surrogate|constant",
)
class Round(Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, dz):
        return dz.clone()


# microsoft/nni#3159: the gradient passes where the value is cut off.
@wrong(
    "a_clamp_passes_the_gradient_outside_its_bounds",
    "gradient where the function is flat",
    normals((4, 6)),
    r"flat|straight.through|bound|clamp|outside|constant",
    *ANY,
)
class HardTanh(Function):
    @staticmethod
    def forward(ctx, x):
        return x.clamp(-0.5, 0.5)

    @staticmethod
    def backward(ctx, dz):
        return dz.clone()


# NVIDIA-NeMo/Automodel#2428 (in review): right as long as the targets of a row sum to one.
@wrong(
    "targets_are_taken_to_sum_to_one",
    "factor left out that is usually one",
    normals((4, 3), (4, 3)),
    *ANY,
    r"sum|too (small|large)",
)
class SoftCrossEntropy(Function):
    @staticmethod
    def forward(ctx, x, target):
        logs = x.log_softmax(1)
        ctx.save_for_backward(logs, target)
        return -(target * logs).sum()

    @staticmethod
    def backward(ctx, dz):
        logs, target = ctx.saved_tensors
        return dz * (logs.exp() - target), -dz * logs


@wrong(
    "a_permutation_is_not_inverted", "permutation", normals((4, 3)), r"permut|transpos|order", *ANY
)
class Roll(Function):
    order = [1, 2, 3, 0]

    @staticmethod
    def forward(ctx, x):
        return x[Roll.order]

    @staticmethod
    def backward(ctx, dz):
        return dz[Roll.order]


@wrong(
    "a_running_sum_runs_forward_in_backward",
    "direction of a sum",
    normals((6,)),
    r"revers|direction",
    *ANY,
)
class Cumulative(Function):
    @staticmethod
    def forward(ctx, x):
        return x.cumsum(0)

    @staticmethod
    def backward(ctx, dz):
        return dz.cumsum(0)


# dx is right; the learned slope also counts the elements that it does not multiply.
@wrong(
    "the_learned_slope_counts_positive_elements_too",
    "one input's gradient wrong",
    normals((4, 3), ()),
    r"slope",
    *ANY,
)
class PReLU(Function):
    @staticmethod
    def forward(ctx, x, slope):
        ctx.save_for_backward(x, slope)
        return torch.where(x > 0, x, slope * x)

    @staticmethod
    def backward(ctx, dz):
        x, slope = ctx.saved_tensors
        return torch.where(x > 0, dz, slope * dz), (dz * x).sum()


# A relative error of 1e-4: eps stands in forward and not in backward.
@wrong("backward_leaves_eps_out", "small error everywhere", normals((4, 6)), *ANY)
class RMSNorm(Function):
    @staticmethod
    def forward(ctx, x):
        square = x.square().mean(1, keepdim=True)
        ctx.save_for_backward(x, square)
        return x * (square + 1e-4).rsqrt()

    @staticmethod
    def backward(ctx, dz):
        x, square = ctx.saved_tensors
        r = square.rsqrt()
        return r * (dz - x * r * r * (dz * x).mean(1, keepdim=True))
