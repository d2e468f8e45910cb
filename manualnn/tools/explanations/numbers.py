"""A network worked through with real numbers, by the page's equations, beside autograd.

The equations are done one by one in float64, with g and g′ as the hand-written op states them. Beside them
runs the same network of torch's own functions, differentiated by autograd alone: every step must agree.
"""

import json
from dataclasses import asdict, dataclass

import torch

from manualnn.tools.explanations.work import Work
from manualnn.tools.explanations.worked import fixed, short

SMALL_UNITS, SMALL_EXAMPLES = 6, 4  # what is still read as it is
FEW_UNITS, FEW_EXAMPLES = 3, 2  # what a larger network is worked through with


@dataclass(frozen=True)
class Numbers:
    """A network worked through; true where every step agrees with autograd.

    sizes: [n[0], ..., n[L]] that it was worked through with; m: examples; reduced: whether the network
    has more units or examples than that; steps: a Step each.
    """

    name: str
    sizes: list
    m: int
    reduced: bool
    steps: list

    def __bool__(self):
        return not self.failures

    @property
    def failures(self):
        """The steps that differ from autograd's."""
        return [step for step in self.steps if not step.ok]

    def to_json(self):
        """All of it as JSON text."""
        content = {"sizes": self.sizes, "examples": self.m, "reduced": self.reduced}
        content |= {"agrees": bool(self), "steps": [asdict(step) for step in self.steps]}
        return json.dumps(content, ensure_ascii=False, indent=1)

    def __str__(self):
        checked = [step for step in self.steps if step.error is not None]
        units = " -> ".join(map(str, self.sizes))
        what = "the same layers with" if self.reduced else "the network with"
        lines = [f"With numbers: {what} {units} units, m = {self.m}, float64"]
        part = None
        for step in self.steps:
            if step.part != part:
                part = step.part
                lines += ["", part]
            lines += _lines_of(step)
        worst = max(step.error for step in checked)
        if self:
            message = f"All {len(checked)} steps agree with autograd"
            return "\n".join([*lines, "", f"{message}; largest difference {worst:.0e}"])
        wrong = ", ".join(step.name for step in self.failures)
        message = f"{len(self.failures)} of {len(checked)} steps DIFFER from autograd: {wrong}"
        return "\n".join([*lines, "", message])


def _lines_of(step):
    """A step's lines of text: the equation, what autograd says to it, the matrix."""
    verdict = ""
    if step.error is not None:
        how = f"to {step.error:.0e}" if step.error else "exactly"
        verdict = (
            f"autograd: the same, {how}" if step.ok else f"AUTOGRAD DIFFERS by {step.error:.0e}"
        )
    lines = [f"  {step.equation}"]
    if verdict:
        lines[0] = f"{lines[0]:<58}  {verdict}"
    if step.worked:
        lines.append(f"      {step.worked}")
    return lines + [f"      {row}" for row in columns(step.value)]


def columns(value):
    """A matrix as lines of text, with as many decimals as it needs, four at most."""
    every = [number for row in value for number in row]
    digits = max((len(short(number, 4).partition(".")[2]) for number in every), default=0)
    cells = [[fixed(number, digits) for number in row] for row in value]
    width = max((len(cell) for row in cells for cell in row), default=1)
    return ["[ " + "  ".join(cell.rjust(width) for cell in row) + " ]" for row in cells]


def work_through(explanation, seed, own):
    """The Numbers of an explanation's layers; ``own`` as in ``Explanation.numbers``."""
    layers, sizes, m = explanation.layers, explanation.sizes, explanation.m
    small = max(sizes) <= SMALL_UNITS and m <= SMALL_EXAMPLES
    reduced = not small
    if reduced:
        first, *hidden, last = sizes
        hidden = [min(n, FEW_UNITS) for n in hidden]
        sizes = [min(first, FEW_EXAMPLES), *hidden, min(last, FEW_EXAMPLES)]
        m = min(m, FEW_EXAMPLES)
    own = own and small
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        given = _own(explanation) if own else None
        X, parameters = given or _made_up(layers, sizes, m)
        with torch.enable_grad():
            steps = Work(layers, sizes, m, X, parameters, _learned(explanation, sizes)).done()
    return Numbers(explanation.name, sizes, m, reduced, steps)


def _made_up(layers, sizes, m):
    """Numbers with one decimal, which can be followed by hand."""

    def tenths(*shape):
        return torch.randint(1, 10, shape).double() / 10 * (1 - 2 * torch.randint(0, 2, shape))

    parameters = []
    for layer, n_prev, n in zip(layers, sizes[:-1], sizes[1:], strict=True):
        parameters.append((tenths(n, n_prev), tenths(n, 1) if layer.b else None))
    return tenths(sizes[0], m), parameters


def _own(explanation):
    own = dict(explanation._model.named_parameters(remove_duplicate=False))
    x = explanation.x
    if x is None or x.numel() != explanation.m * explanation.sizes[0]:
        return None
    parameters = [
        (own[l.W].detach().double(), own[l.b].detach().double()[:, None] if l.b else None)
        for l in explanation.layers
    ]
    return x.detach().cpu().double().reshape(explanation.m, -1).T, parameters


def _learned(explanation, sizes):
    """{l: {name: value}} of what the activations learn, as many as there are units now."""
    own = dict(explanation._model.named_parameters(remove_duplicate=False))
    values = {}
    for layer in explanation.layers:
        n = sizes[layer.l]
        values[layer.l] = {
            name: own[path].detach().double().flatten()[:n].reshape(-1 if own[path].dim() else ())
            for name, path in zip(layer.g.learned if layer.g else (), layer.learned, strict=True)
        }
    return values
