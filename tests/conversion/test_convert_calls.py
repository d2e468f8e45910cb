"""A recorded model's calls pass through a torch function mode, where each costs microseconds."""

import pytest
import torch

from manualnn import convert
from manualnn.conversion import calls

CHAINS = {
    "conv, norm, relu": lambda: (
        torch.nn.Conv2d(3, 3, 3, padding=1),
        torch.nn.BatchNorm2d(3),
        torch.nn.ReLU(inplace=True),
    ),
    "conv, norm, gelu": lambda: (
        torch.nn.Conv2d(3, 3, 1),
        torch.nn.LayerNorm(5),
        torch.nn.GELU(),
    ),
}


@pytest.fixture
def seen(monkeypatch):
    """The names of the functions that the mode sees."""
    names, usual = [], calls.Calls.__torch_function__

    def noting(self, func, *rest):
        names.append(func.__name__)
        return usual(self, func, *rest)

    monkeypatch.setattr(calls.Calls, "__torch_function__", noting)
    return names


@pytest.mark.parametrize("chain", CHAINS)
def test_the_metadata_queries_of_layers_bypass_the_mode(chain, seen):
    model = convert(torch.nn.Sequential(*CHAINS[chain](), *CHAINS[chain]()))
    model(torch.randn(2, 3, 5, 5))
    assert seen == []


class Shifted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(x) + 1


def test_what_the_model_itself_calls_is_seen(seen):
    convert(Shifted())(torch.randn(2, 3, 5, 5))
    assert seen in (["add"], ["__add__"])
