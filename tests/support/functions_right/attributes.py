"""Right modules that keep a state in plain attributes: each call changes what the next one begins with."""

import torch
from catalogue import Entry, enter, normals
from torch import nn

from functions_right.modules import seeded

ENTRIES: list[Entry] = []
right = enter(ENTRIES)


class Carried(nn.Module):
    """Backpropagation through time that is cut: the hidden state goes on, its history does not."""

    def __init__(self):
        super().__init__()
        self.cell, self.h = nn.GRUCell(5, 3), None

    def forward(self, x):
        known = self.h is not None and len(self.h) == len(x) and self.h.dtype == x.dtype
        h = self.cell(x, self.h if known else None)
        self.h = h.detach()
        return h


@right("a_hidden_state_in_an_attribute", "state of a module", normals((3, 5)), module=True)
@seeded
def carried():
    return Carried()


class Annealed(nn.Module):
    """Divided by a count of its calls."""

    def __init__(self):
        super().__init__()
        self.n, self.layer = 0, nn.Linear(3, 3)

    def forward(self, x):
        self.n += 1
        return self.layer(x) / (1 + self.n)


@right("a_counter_of_steps", "state of a module", normals((2, 3)), module=True)
@seeded
def annealed():
    return Annealed()


@right("a_history_in_a_dict_inside", "state of a module inside", normals((4, 3)), module=True)
@seeded
def remembers():
    class Moving(nn.Module):
        """Less a moving mean, which is written to in place; and what it was is listed."""

        def __init__(self):
            super().__init__()
            self.state = {"mean": torch.zeros(3, dtype=torch.float64), "seen": []}

        def forward(self, x):
            mean = self.state["mean"].to(x.dtype, copy=True)
            self.state["seen"].append(len(x))
            self.state["mean"].lerp_(x.detach().to(torch.float64).mean(0), 0.1)
            return (x - mean) / len(self.state["seen"])

    return nn.Sequential(nn.Linear(3, 3), Moving(), nn.Tanh())


@right("a_state_made_by_the_first_call", "state that was not there", normals((4, 3)), module=True)
@seeded
def made_later():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            self.step = getattr(self, "step", 0) + 1
            return self.layer(x).sin() / self.step

    return Late()
