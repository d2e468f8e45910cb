"""An explanation: as text, as JSON, as a picture, with numbers."""

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

import torch

from manualnn.tools.explanations.formulas import formula, path_of
from manualnn.tools.explanations.numbers import Numbers, work_through
from manualnn.tools.explanations.page import Layer, behind
from manualnn.tools.explanations.saved import SavedTensor
from manualnn.tools.explanations.text import as_text
from manualnn.tools.ledgers import Ledger
from manualnn.tools.ledgers.report import read
from manualnn.tools.old_names import renamed


@dataclass
class Step:
    """One op of a model that is no network of the page.

    layer: path of the module that ran it; op: its name; written: where the hand-written op stands, None if
    it is torch's own; shapes_in, shape: of the tensors that came and went, as in memory; parameters:
    {path: shape}; saved: a SavedTensor each; flops: (forward, backward); number: in the order of forward,
    from 1; after: the numbers of the steps whose outputs it takes, none for the model's input.
    """

    layer: str
    op: str
    written: str | None
    shapes_in: list[tuple[int, ...]]
    shape: tuple[int, ...]
    parameters: dict[str, tuple[int, ...]]
    saved: list[SavedTensor]
    flops: tuple[int, int]
    number: int
    after: list[int]

    kept = renamed("kept", "saved")


class Explanation:
    """What a network computes, forward and backward, layer by layer; ``print`` shows it.

    name, training, dtype, m: of the model, its mode, its numbers, how many examples it was called with.
    layers: a Layer each, in the page's notation; None where the model is not a chain of fully connected
    layers. steps: a Step for each op otherwise, else None. ledger: what is saved, ours and torch.nn's.
    flops: (forward, backward). parameters: how many numbers are learned.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        name: str,
        ledger: Ledger,
        dtype: torch.dtype,
        m: int,
        layers: list[Layer] | None,
        steps: list[Step] | None,
        returned: Any,
        inputs: list[torch.Tensor],
        ops: list[Any],
    ) -> None:
        self.name, self.ledger, self.m = name, ledger, m
        self.training, self.dtype = model.training, str(dtype).removeprefix("torch.")
        self.layers: list[Layer] | None = layers
        self.steps: list[Step] | None = steps
        self.returned = returned
        self.given = [tuple(t.shape) for t in inputs]
        self.x = inputs[0] if inputs else None
        self.parameters = sum(p.numel() for p in model.parameters())
        counted: Any = layers if layers is not None else steps
        self.flops = tuple(sum(one.flops[i] for one in counted) for i in (0, 1))
        self._model, self._ops = model, ops

    @property
    def sizes(self) -> list[int] | None:
        """[n[0], n[1], ..., n[L]]; None where there are no layers of the page."""
        if self.layers is None:
            return None
        return [self.layers[0].n_prev, *(layer.n for layer in self.layers)]

    @property
    def saved(self) -> int:
        """Bytes saved for backward, beside parameters and the model's input."""
        return self.ledger.total

    kept = renamed("kept", "saved")

    def __str__(self):
        return as_text(self)

    def to_json(self) -> str:
        """All of it as JSON text."""
        content: dict[str, Any] = {
            "target": self.name,
            "training": self.training,
            "dtype": self.dtype,
            "examples": self.m,
            "parameters": self.parameters,
            "flops": dict(zip(("forward", "backward"), self.flops, strict=True)),
            "saved": self.saved,
            "saved_by_torch": self.ledger.torch_total,
        }
        if self.layers is not None:
            content["sizes"] = self.sizes
            content["layers"] = [_layer(layer) for layer in self.layers]
        if self.steps is not None:
            content["steps"] = [asdict(step) for step in self.steps]
            content["ops"] = {name: _formula(cls) for name, cls in self.ops().items()}
        return json.dumps(content, ensure_ascii=False, indent=1)

    def ops(self) -> dict[str, type | None]:
        """{name: the hand-written op, or None where it is torch's own}, in the order of forward."""
        return {op.name: op.cls for op in self._ops if op.listed}

    def numbers(self, seed: int = 0, own: bool = True) -> Numbers:
        """The network worked through with real numbers, each step checked against autograd.

        Up to 6 units a layer and 4 examples it is the network itself. A larger one cannot be read: it is
        worked through with few units and two examples, the same layers, activations and dropout.

        Args:
            seed: of the numbers that are made up, and of dropout.
            own: whether a small network's weights and input are its own; else they are made up, with one
                decimal.

        Returns:
            Numbers, which print as text and are true where every step agrees.

        Raises:
            ValueError: the model is not a chain of fully connected layers.
        """
        if self.layers is None:
            raise ValueError(
                f"only fully connected layers are worked through; {self.name} has others"
            )
        return work_through(self, seed, own)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws the page's diagram for this network.

        Args:
            path: of the picture; its ending says the format (.svg, .png, .pdf).

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: the ending is of no format; or the model branches, and is no row of boxes.
            OSError: the path cannot be written.
        """
        from manualnn.tools.explanations.picture import draw

        draw(self, path)


def _layer(layer):
    content = {
        "l": layer.l,
        "module": layer.name,
        "units": [layer.n_prev, layer.n],
        "forward": [equation for equation, _ in layer.forward()],
        "backward": [{"equation": equation, "note": note} for equation, note in layer.backward()],
        "matrices": layer.matrices(),
        "saved": [asdict(tensor) for tensor in layer.saved],
        "flops": dict(zip(("forward", "backward"), layer.flops, strict=True)),
        "dropout": layer.dropout,
        "activation": None,
    }
    if layer.g is not None:
        g = layer.g
        content["activation"] = {
            "op": path_of(g.cls),
            "a": g.a,
            "g_prime": g.slope,
            "code": {"g": g.code, "g_prime": g.slope_code, "from": "a" if g.from_output else "z"},
            "options": {k: v for k, v in g.options.items() if v is not None},
        }
    return content


def _formula(cls):
    return None if cls is None else asdict(formula(cls)) | {"written": path_of(cls)}


def steps_of(ops, found):
    """The ops of a trace that compute something, with what the ledger found that each saves."""
    made, numbers = [], {}
    for op in ops:
        if not op.listed:
            continue
        saved = [
            SavedTensor("", tuple(e.shape), e.dtype, e.bytes, e.why) for e in found.get(id(op), [])
        ]
        written = None if op.cls is None else path_of(op.cls)
        before = [behind(one) for one in op.inputs]
        after = [numbers[id(one)] for one in before if one is not None]
        number = numbers[id(op)] = len(made) + 1
        shapes = op.shapes_in, op.shape, op.parameters
        made.append(Step(op.layer, op.name, written, *shapes, saved, op.flops, number, after))
    moved = [e for op in ops if not op.listed for e in found.get(id(op), [])] + found[None]
    for entry in moved:  # of an op that is not listed: shown at the one that comes first
        made[0].saved.append(SavedTensor("", entry.shape, entry.dtype, entry.bytes, entry.why))
    return made


__all__ = ["Explanation", "Step", "read", "steps_of"]
