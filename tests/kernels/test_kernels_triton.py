"""Triton's text of an expression computes the formula, in Triton's interpreter: no GPU is needed."""

import importlib.util

import pytest
import torch
from kernel_cases import CASES, by_aten

from manualnn.kernels import running, triton

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # NumPy's, of infinities
]


def text_of(case, dtype=torch.float32):
    expression = running._traced(case.formula, dtype, case.options, case.tensors + case.singles)
    return triton.source(expression, (False,) * case.tensors + (True,) * case.singles)


# The interpreter knows nothing of libdevice, which has tanh and the like.
INTERPRETED = [name for name, case in CASES.items() if "libdevice" not in text_of(case)]


def loaded(text, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    (tmp_path / "printed.py").write_text(text)  # triton reads a kernel's own file
    spec = importlib.util.spec_from_file_location("printed", tmp_path / "printed.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def close(mine, other):
    return torch.allclose(mine, other, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_most_are_interpreted():
    assert len(INTERPRETED) > 60 and {"Snake-g", "SiLU-g_prime", "Softsign-g"} <= set(INTERPRETED)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", INTERPRETED)
def test_it_computes_the_formula(name, tmp_path, monkeypatch):
    case = CASES[name]
    module = loaded(text_of(case), tmp_path, monkeypatch)
    for size in (1, 1500):
        tensors = case.values(torch.float32, size)
        assert close(module.run(*tensors), by_aten(case, *tensors))


@pytest.mark.parametrize("name", ["Hardsigmoid-g_prime", "Softsign-g", "Snake-d_alpha"])
def test_float64_keeps_its_digits(name, tmp_path, monkeypatch):
    case = CASES[name]
    module = loaded(text_of(case, torch.float64), tmp_path, monkeypatch)
    tensors = case.values(torch.float64, 500)
    mine, other = module.run(*tensors), by_aten(case, *tensors)
    assert torch.allclose(mine, other, rtol=1e-13, atol=1e-14, equal_nan=True)


@pytest.mark.parametrize(
    "old, new",
    [
        ("t1 = tl.abs(z_i)", "t1 = z_i"),
        ("t1 + 1.0", "t1 + 1.01"),
        ("here = at < n", "here = at < 9"),
    ],
)
def test_a_fault_is_seen(old, new, tmp_path, monkeypatch):
    case = CASES["Softsign-g"]
    right = text_of(case)
    wrong = right.replace(old, new).replace("empty_like", "zeros_like")
    assert wrong.count(new) == 1
    tensors = case.values(torch.float32, 1500)
    assert not close(loaded(wrong, tmp_path, monkeypatch).run(*tensors), by_aten(case, *tensors))
