"""Wrong elsewhere than at the numbers and shapes that are given: far out, at zero, in a longer row."""

import torch
from catalogue import Entry, enter, given, normals
from torch.autograd import Function

ENTRIES: list[Entry] = []
wrong = enter(ENTRIES)


def saved(g):
    class OfOne(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return g(x)

    return OfOne


@wrong("softplus_is_flat_beyond_twenty", "far out", normals((3, 4)), "values up to 30")
class Softplus(saved(torch.nn.functional.softplus)):
    @staticmethod
    def backward(ctx, da):
        (x,) = ctx.saved_tensors
        return da * torch.where(x > 20, 0, x.sigmoid())


@wrong("a_clamp_that_forgets_its_mask", "beyond the bound", normals((3, 4)), "values up to 8")
class Clamp(saved(lambda x: x.clamp(-6, 6))):
    @staticmethod
    def backward(ctx, da):
        return da


@wrong("small_numbers_are_taken_for_zero", "near zero", normals((3, 4)), "values down to 0.001")
class Small(saved(torch.sin)):
    @staticmethod
    def backward(ctx, da):
        (x,) = ctx.saved_tensors
        return da * x.cos() * (x.abs() > 1e-3)


@wrong("sinc_divides_by_zero", "at zero", normals((3, 4)), "some of the numbers are 0")
class Sinc(saved(torch.sinc)):
    @staticmethod
    def backward(ctx, da):
        (x,) = ctx.saved_tensors
        y = torch.pi * x
        return da * (y.cos() * y - y.sin()) / (y * x)


@wrong("the_largest_of_all_rows_is_subtracted", "rows far apart", normals((3, 4)), "far apart")
class LogSumExp(saved(lambda x: x.logsumexp(-1))):
    @staticmethod
    def backward(ctx, da):
        (x,) = ctx.saved_tensors
        e = (x - (x.max() if x.numel() else 0)).exp()
        return da.unsqueeze(-1) * e / e.sum(-1, keepdim=True)


@wrong("right_for_sixteen_rows", "tail of a block", normals((4, 3)), "batch of 67")
class Rows(saved(torch.sin)):
    @staticmethod
    def backward(ctx, da):
        (x,) = ctx.saved_tensors
        dx = torch.zeros_like(x)
        dx[:16] = (da * x.cos())[:16]
        return dx


@wrong("the_last_columns_of_four_are_left_out", "tail of a vector", normals((3, 8)), "11 long")
class Columns(saved(torch.sin)):
    @staticmethod
    def backward(ctx, da):
        (x,) = ctx.saved_tensors
        whole, dx = x.shape[-1] // 4 * 4, torch.zeros_like(x)
        dx[..., :whole] = (da * x.cos())[..., :whole]
        return dx


@wrong("right_in_two_dimensions", "another rank", normals((3, 4)), "a dimension more")
class Matrices(saved(torch.sin)):
    @staticmethod
    def backward(ctx, da):
        (x,) = ctx.saved_tensors
        return da * x.cos() * max(1, x.dim() - 1)


@wrong("the_sign_is_lost_in_float16", "one dtype", normals((3, 4)), "float16")
class Half(saved(torch.exp)):
    @staticmethod
    def backward(ctx, da):
        (x,) = ctx.saved_tensors
        return da * x.exp() * (-1 if x.dtype is torch.float16 else 1)


@wrong("in_place_and_not_marked", "mark_dirty forgotten", normals((3, 4)), "mark_dirty")
class Doubled(Function):
    @staticmethod
    def forward(ctx, x):
        return x.mul_(2)

    @staticmethod
    def backward(ctx, da):
        return da * 2


class Twice(saved(torch.sin)):
    @staticmethod
    def backward(ctx, da):
        (x,) = ctx.saved_tensors
        return 2 * da * x.cos()


@wrong(
    "behind_an_embedding_with_a_padding_row",
    "what is excused hides nothing",
    given(torch.tensor([[0, 1, 2], [4, 1, 1]])),
    "2× too large",
    module=True,
)
class Behind(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rows = torch.nn.Embedding(5, 3, padding_idx=1)

    def forward(self, i):
        return Twice.apply(self.rows(i))


@wrong(
    "rows_are_written_where_they_are_to_be_added",
    "indices that were all different",
    given(torch.linspace(-1, 1, 18).view(6, 3).sin(), torch.tensor([4, 1, 5])),
    "two of the integers are the same",
)
class Written(Function):
    @staticmethod
    def forward(ctx, table, places):
        ctx.save_for_backward(places)
        ctx.shape = table.shape
        return table[places]

    @staticmethod
    def backward(ctx, da):
        (places,) = ctx.saved_tensors
        table = da.new_zeros(ctx.shape)
        table[places] = da
        return table, None


WORKSPACE: dict = {}


@wrong(
    "the_output_lies_in_memory_that_calls_share",
    "a workspace given out",
    normals((4, 3)),
    "next call overwrites",
)
class Workspace(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        key = x.shape, x.dtype
        return (
            WORKSPACE.setdefault(key, torch.empty(*key[:1], dtype=x.dtype)).copy_(x.sin()).detach()
        )

    @staticmethod
    def backward(ctx, da):
        (x,) = ctx.saved_tensors
        return da * x.cos()


@wrong(
    "a_squeeze_takes_the_batch_of_one_with_it",
    "batch of one",
    normals((4, 3)),
    "no dimension for the batch",
    module=True,
)
class Squeezed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.l = torch.nn.Linear(3, 1)

    def forward(self, x):
        return self.l(x).squeeze()


@wrong("sixteen_columns_are_written", "a longer row", normals((2, 8)), "67 long")
class Sixteen(saved(torch.sin)):
    @staticmethod
    def backward(ctx, da):
        (x,) = ctx.saved_tensors
        dx = torch.zeros_like(x)
        dx[..., :16] = (da * x.cos())[..., :16]
        return dx


@wrong(
    "right_for_positive_numbers_alone",
    "the other sign",
    given(torch.linspace(0.1, 1.3, 12).view(4, 3)),
    "the other sign",
)
class Positive(saved(lambda x: x.abs().log1p())):
    @staticmethod
    def backward(ctx, da):
        (x,) = ctx.saved_tensors
        return da / (1 + x.abs())
