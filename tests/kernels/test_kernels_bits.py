"""A kernel gives the bits of its formula by ATen, operation after operation: sizes, layouts, threads."""

import pytest
import torch
from kernel_cases import CASES, Case, by_aten, by_kernel, make, need_every_kind

from manualnn.autograd import blockwise
from manualnn.kernels import library, running
from manualnn.kernels.trust import same_bits

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
each_formula = pytest.mark.parametrize(
    "name, dtype",
    [
        (n, d)
        for d in (torch.float32, torch.float64)
        for n in CASES
        if d is torch.float32 or CASES[n].first
    ],
    ids=str,
)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
# One of each kind: arithmetic alone, MKL's functions, SLEEF's, with scalar ends, with a learned number.
SOME = [
    "Softsign-g_prime",
    "Tanhshrink-g",
    "ELU-g-1.7",
    "Mish-g_prime",
    "Sigmoid-g",
    "Snake-g_prime",
]
some_formulas = pytest.mark.parametrize("name", SOME)


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@each_formula
def test_every_formula_has_a_kernel(name, dtype, kernels):
    assert kernels[name, dtype] is not None


@each_formula
def test_any_size(name, dtype, kernels):
    case, vector = CASES[name], library.width(dtype)
    for size in (1, vector - 1, vector, vector + 1, 2 * vector + 1, 1024, 4 * 1024 + 5):
        tensors = case.values(dtype, size, seed=size)
        assert same_bits(by_kernel(case, *tensors), by_aten(case, *tensors)), size


@each_dtype
@some_formulas
@pytest.mark.parametrize("size", [70_001, 4 * blockwise.BLOCK + 40_007])
def test_large(name, dtype, size, kernels, threads):
    """Of several blocks and threads, each with an end of its own."""
    case = CASES[name]
    tensors = case.values(dtype, size)
    assert same_bits(by_kernel(case, *tensors), by_aten(case, *tensors))


def test_it_matters_where_ATen_ends():
    """The tests above see something: of such formulas ATen's own bits depend on the size."""
    z = CASES["SiLU-g"].values(torch.float32, 31)[0]
    whole = torch.sigmoid(torch.cat([z, z]))
    if library.width(torch.float32) > 1:
        assert not same_bits(whole[:31], torch.sigmoid(z))


@some_formulas
def test_none(name, kernels):
    case = CASES[name]
    out = by_kernel(case, *case.values(torch.float32, 0))
    assert out.shape == (0,)
    assert by_kernel(case, *case.values(torch.float32, 3, 0)).shape == (3, 0)


@some_formulas
def test_one_number(name, kernels):
    case = CASES[name]
    if not case.singles:
        tensors = case.values(torch.float32)
        assert same_bits(by_kernel(case, *tensors), by_aten(case, *tensors))


@some_formulas
def test_where_it_starts_in_memory(name, kernels):
    case = CASES[name]
    for start in (1, 2, 3):
        tensors = [t[start:] for t in case.values(torch.float32, 2000)]
        assert same_bits(by_kernel(case, *tensors), by_aten(case, *tensors))


@some_formulas
@pytest.mark.parametrize("shape", [(3, 5, 7, 3), (8, 16, 64, 65)], ids=str)
def test_channels_last(name, shape, kernels, threads):
    case = CASES[name]
    tensors = case.values(torch.float32, *shape)
    full = [t.contiguous(memory_format=torch.channels_last) for t in tensors[: case.tensors]]
    tensors = [*full, *tensors[case.tensors :]]
    out = by_kernel(case, *tensors)
    assert out.stride() == full[0].stride()
    assert same_bits(out, by_aten(case, *tensors))


@some_formulas
def test_any_order_of_dimensions(name, kernels):
    case = CASES[name]
    tensors = [t.permute(1, 2, 0) for t in case.values(torch.float32, 3, 40, 11)]
    assert same_bits(by_kernel(case, *tensors), by_aten(case, *tensors))


@need_every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow(dtype, cache):
    """Computed in float32 and rounded once, as ATen rounds: every number there is."""
    numbers = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    cases = [CASES[name] for name in SOME]
    assert None not in make(cases, dtype)
    for case in cases:
        tensors = [numbers, numbers.flip(0)][: case.tensors]
        tensors += [torch.tensor(0.7, dtype=dtype).expand_as(numbers)] * case.singles
        assert same_bits(by_kernel(case, *tensors), by_aten(case, *tensors)), case.name


def test_a_learned_number_in_another_dtype(cache):
    case = CASES["Snake-g"]
    z = case.values(torch.bfloat16, 3000)[0]
    alpha = torch.tensor(0.7).expand_as(z)
    assert same_bits(by_kernel(case, z, alpha), by_aten(case, z, alpha))


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, -1, -2, 0.5, -0.5, 2.5, 4, -3])
def test_powers(exponent, cache, monkeypatch):
    monkeypatch.setattr(running, "KINDS_OF_OPTIONS", 99)
    case = Case("power", lambda z, exponent: z**exponent + 1, (exponent,), 1)
    tensors = case.values(torch.float32, 1000)
    assert same_bits(by_kernel(case, *tensors), by_aten(case, *tensors))


def functions(z):
    small = z.clamp(-0.9, 0.9)
    found = (
        torch.exp(small) + torch.expm1(z) * torch.log1p(z.abs()) - torch.log(z.abs()) + torch.erf(z)
    )
    found = (
        found
        + torch.cos(z)
        + torch.tan(small)
        + torch.atan(z)
        + torch.asin(small)
        + torch.acos(small)
    )
    found = (
        found
        + torch.log2(z.abs() + 1)
        + torch.log10(z.abs() + 1)
        + torch.exp2(small)
        + torch.rsqrt(z)
    )
    return found + torch.erfc(small) + torch.sqrt(z)


def choices(z):
    found = (
        torch.maximum(z, -z) + torch.minimum(z, z * 2) + z.sign() + z.floor() - z.ceil() * z.trunc()
    )
    found = (
        found + (z > 0) * z + (z.isnan() | (z != z)).to(z.dtype) + torch.relu(z) + z.clamp_max(1)
    )
    found += torch.nn.functional.leaky_relu(z, 0.2) + torch.nn.functional.threshold(z, 0.1, 7.0)
    found -= torch.nn.functional.silu(z) + torch.sigmoid(z) + torch.nn.functional.hardtanh(z)
    return torch.where((z >= 1) ^ (z == -1), found, found.neg() - 1 / z)


@each_dtype
@pytest.mark.parametrize("formula", [functions, choices])
def test_what_else_is_printed(formula, dtype, cache):
    case = Case(formula.__name__, formula, (), 1)
    for size in (29, 5000):
        tensors = case.values(dtype, size)
        assert same_bits(by_kernel(case, *tensors), by_aten(case, *tensors))
