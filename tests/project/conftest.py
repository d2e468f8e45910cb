"""What the docs show runs as it does for who reads them."""

import pytest

from manualnn.memory import recorder

LEAST = 1 << 17


@pytest.fixture(autouse=True)
def small_tensors_are_left_alone(monkeypatch):
    monkeypatch.setattr(recorder, "LEAST", LEAST)
