"""Wrong beside, or through, what a module keeps in plain attributes."""

from catalogue import Entry, enter, normal, normals
from torch import nn
from torch.autograd import Function

ENTRIES: list[Entry] = []
wrong = enter(ENTRIES)


class HalfSlope(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        return dz * x.cos() / 2


@wrong(
    "a_factor_is_missing_beside_a_counter_of_steps",
    "wrong gradient of a module with state",
    normals((4, 3)),
    r"2.* too small",
    module=True,
)
class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.n = 0

    def forward(self, x):
        self.n += 1
        return HalfSlope.apply(x) / self.n


class OnTheModule(Function):
    @staticmethod
    def forward(ctx, x, module):
        ctx.module, module.x = module, x
        return x.sin()

    @staticmethod
    def backward(ctx, dz):
        return dz * ctx.module.x.cos(), None


# The second call writes over what the first backward reads.
@wrong(
    "what_backward_needs_is_kept_on_the_module",
    "state of a module in place of ctx",
    normals((4, 3)),
    r"stored on the class or the module|another call",
    module=True,
)
class Keeper(nn.Module):
    def forward(self, x):
        return OnTheModule.apply(x, self)


# The count changes with every call, and the weight with none: it stays that of the first parameters.
@wrong(
    "a_stale_weight_beside_a_counter",
    "stale weight of a module with state",
    normals((4, 3)),
    r"stale|cache|remember|state|call|twice|second|again",
    r"analytic|numeric|central differences",
    module=True,
)
class Stale(nn.Module):
    def __init__(self):
        super().__init__()
        self.v, self.weight, self.n = nn.Parameter(normal(5, 3)), None, 0

    def forward(self, x):
        self.n += 1
        if self.weight is None:
            self.weight = self.v / self.v.norm(dim=1, keepdim=True)
        return x @ self.weight.to(x.dtype).T / self.n
