"""What the tests of kernels share: a cache of their own, every formula's kernel made once."""

import pytest
import torch
from kernel_cases import CASES, here, make

from manualnn.kernels import build, running


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """The folder that stands for the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setattr(running, "enabled", True)
        yield folder


@pytest.fixture(autouse=True)
def at_any_size(monkeypatch):
    monkeypatch.setattr(running, "LEAST", 0)


@pytest.fixture
def anew(monkeypatch, tmp_path):
    """No kernel is known, the cache is empty, nothing has been said: as at the start of a process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    monkeypatch.setattr(running, "_kernels", {})
    monkeypatch.setattr(running, "_known", running.Counter())
    monkeypatch.setattr(build, "_said", [])
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(build, "_temporary", lambda process: tmp_path / "temporary")
    return tmp_path / "own" / "manualnn" / "kernels"


@pytest.fixture(scope="session")
def kernels(cache):
    """The kernels of all formulas in float32 and float64, by (name, dtype)."""
    if not here():
        pytest.skip("no C compiler, or none of the vectors for which SLEEF's functions are known")
    made = {}
    for dtype in (torch.float32, torch.float64):
        cases = [case for case in CASES.values() if case.first or dtype is torch.float32]
        made |= {
            (c.name, dtype): kernel for c, kernel in zip(cases, make(cases, dtype), strict=True)
        }
    return made
