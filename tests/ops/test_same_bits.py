"""Which ops give torch.nn's own bits, forward and backward: docs/bits.md is this list."""

import re
from pathlib import Path

import pytest
import torch
from battery import call, each_op, leaves
from ops import OPS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

# Op and dtype in which something differs by a rounding, and why. Every other op has torch's bits.
TO_ROUNDING = {
    ("hardsigmoid", torch.float64): "torch's backward holds 1/6 as a float32",
    ("celu", torch.float64): "torch's backward holds alpha as a float32",
}
DTYPES = torch.float32, torch.float64
MANY = 12_000  # examples: enough for what is computed block by block
PAGE = Path(__file__).parents[2] / "docs" / "bits.md"


def of_size(op, dtype, size):
    """The row's inputs, so many batches of them side by side."""
    torch.manual_seed(size)
    made = list(op.inputs(dtype))
    if size == 1:
        return made
    several = [op.inputs(dtype) for _ in range(min(size, 40))]
    for i in op.batch:
        made[i] = torch.cat([one[i] for one in several] * (size // len(several)))
    return made


def step(op, function, tensors, needs):
    wrt = leaves(op, tensors, needs)
    out = call(op, function, wrt)
    torch.manual_seed(3)
    d_out = torch.randn(out.shape, dtype=torch.float64).to(out.dtype)
    needed = [t for t in wrt if t.requires_grad]
    return [out.detach(), *torch.autograd.grad(out, needed, d_out, allow_unused=True)]


def differ(mine, other):
    if mine is None or other is None:
        return mine is not other
    return not torch.equal(mine.isnan(), other.isnan()) or not torch.equal(
        mine.nan_to_num(), other.nan_to_num()
    )


def differences(op, dtype):
    """What is not the same to the last bit: (size, what needs a gradient, 0 for the output or 1, 2, ...)."""
    found = []
    pointwise = op.pointwise or "loss" in op.name or "entropy" in op.name
    for size in (1, 37, MANY) if op.batch and pointwise else (1, 37) if op.batch else (1,):
        tensors = of_size(op, dtype, size)
        for needs in (None, (0,), (1,)):
            if not any(t.requires_grad for t in leaves(op, tensors, needs)):
                continue
            if needs and size == MANY:
                continue
            ours, theirs = step(op, op.ours, tensors, needs), step(op, op.torchs, tensors, needs)
            pairs = enumerate(zip(ours, theirs, strict=True))
            found += [(size, needs, i) for i, (mine, other) in pairs if differ(mine, other)]
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_op
def test_the_same_bits_as_torch(op, dtype):
    if (op.name, dtype) not in TO_ROUNDING:
        assert not differences(op, dtype)


@pytest.mark.parametrize("name, dtype", TO_ROUNDING, ids=str)
def test_an_exception_is_one(name, dtype):
    assert any(differences(op, dtype) for op in OPS if op.name == name)


def test_the_page_lists_the_exceptions():
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    names = {
        (name, str(dtype).removeprefix("torch."), why) for (name, dtype), why in TO_ROUNDING.items()
    }
    assert set(rows) == names
