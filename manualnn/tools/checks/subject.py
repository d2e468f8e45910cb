"""What is checked: a function of tensors, its inputs in float64, and what it is compared with."""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from manualnn.autograd.faces import options_of
from manualnn.ops.embeddings import Embedding
from manualnn.tools.checks.arguments import flat
from manualnn.tools.checks.generators import generators_of, seeded
from manualnn.tools.checks.graph import nodes
from manualnn.tools.checks.lines import compared, reported_once
from manualnn.tools.checks.numeric import DOUBLE, SINGLE, Question, largest
from manualnn.tools.checks.rounding import cancels, is_rounded, spread
from manualnn.tools.checks.tolerated import tolerated


class NoOutput(ValueError):
    """Nothing comes out that a gradient could come back from."""


@dataclass
class Subject:
    """A function of floating tensors and all that the lines of a check need to know about it.

    function, reference: called with one tensor an input; return a tensor or a tuple. names: of the
    inputs, as they stand in the report. batched: which inputs have the batch as first dimension.
    arguments: how many of the inputs are that, and not the parameters of a module (None: all).
    alongside: (change) -> the function with that change of labels, masks and ids; repeat: makes the function
    with integers that come twice (see targets.with_repeated), or None; broadcasts: whether a tensor that is
    no variable fits one element by element. Of a module, fresh: makes the function of a copy that was never
    called; moves: the names of the buffers that a call changes; changes: of its plain
    attributes; other_mode: the function in evaluation (or in
    training, where the module is not); constant: {name: number} of the buffers of which all numbers are the
    same; shifted: (names, other_mode) -> the function, or that in the other mode, where these buffers hold
    other numbers.
    holds_complex: whether a buffer of a module is complex.
    is_function: whether an autograd.Function itself is checked; of_pytorch: a function or layers of
    torch's. made: how check itself made the reference of a module, by converting it or by reverting.
    refused: what float64 was refused with,
    where all is computed in float32. passed_on: (an input that PyTorch does not differentiate, its words).

    own: the generators that the function holds. random: whether two seeds give two outputs;
    draws: whether random numbers are drawn, whatever comes of them.
    writes: whether a call writes to its inputs.
    slope: the size of the largest output over that of the largest input; spread: how much larger one may be
    where an input is small, as of 1/|x|. cancels: whether the outputs are
    zero, or rounding alone, as the sum of what a norm gives: the slope is then that of an output of size 1.
    mixed: whether more than one node is in the graph of the outputs.
    differentiable: of each output, whether a gradient flows through it. precision: what numbers are
    good for: those of float32 also where it is computed in inside.
    """

    name: str
    function: Callable
    inputs: list
    names: list
    reference: Callable | None = None
    kinks: tuple = ()
    surrogate: str | dict | None = None
    seed: int = 0
    batched: tuple = (0,)
    dtype: torch.dtype = torch.float64
    complex: frozenset = frozenset()
    holds_complex: bool = False
    other_mode: Callable | None = None
    constant: dict = field(default_factory=dict)
    shifted: Callable | None = None
    alongside: Callable | None = None
    repeat: Callable | None = None
    broadcasts: bool = False
    fresh: Callable | None = None
    moves: Callable = tuple
    changes: tuple = ()
    is_function: bool = False
    of_pytorch: bool = False
    made: str = ""
    arguments: int | None = None
    refused: str = ""
    passed_on: tuple = ()
    lines: list = field(default_factory=list)
    wrong: dict = field(default_factory=dict)
    slope: float = field(default=0.0, init=False)
    spread: float = field(default=1.0, init=False)
    cancels: bool = field(default=False, init=False)
    mixed: bool = field(default=False, init=False)
    random: bool = field(default=False, init=False)
    draws: bool = field(default=False, init=False)
    rounded: bool = field(default=False, init=False)
    writes: bool = field(default=False, init=False)
    own: list = field(default_factory=list, init=False)

    def __post_init__(self):
        self.inputs = [away_from(t, self.kinks) for t in self.inputs]
        self.own = generators_of(self.function)
        self.precision = DOUBLE if self.dtype is torch.float64 else SINGLE
        with torch.no_grad():
            given = [t.clone() for t in self.inputs]
            first = self._raw(given)
            undrawn = torch.Generator().manual_seed(self.seed).get_state()
            self.draws = not torch.get_rng_state().equal(undrawn)
            if not first:
                raise NoOutput(
                    "check() found no floating tensor in what comes out; looked into are tuples, lists, dicts "
                    "and dataclasses"
                )
            self.writes = any(
                not same(a, b) or a._version for a, b in zip(given, self.inputs, strict=True)
            )
            again = self.outputs(self.inputs, seed=self.seed + 1)
        sizes = [max(map(largest, tensors), default=0.0) for tensors in (first, self.inputs)]
        self.cancels = cancels(self, first)
        self.slope = (1.0 if self.cancels else sizes[0]) / (sizes[1] or 1.0)
        self.spread = max(map(spread, self.inputs), default=1.0)
        self.random = any(not same(a, b) for a, b in zip(first, again, strict=True))
        with torch.enable_grad():
            leaves = self.leaves()
            outputs = self.outputs(leaves)
            flows = [o.requires_grad for o in outputs]
        self.mixed = sum(not hasattr(node, "variable") for node in nodes(outputs)) > 1
        rows = padding_rows(outputs, leaves)
        if rows:
            self._call_by(partial(holding, inputs=self.inputs, rows=rows))
        halves = self._read_by_half()
        if halves:
            self._call_by(partial(symmetrised, which=halves))
        del outputs
        self.differentiable = flows if any(flows) else [True for _ in flows]
        if self.dtype is torch.float64 and not self.cancels and is_rounded(self):
            self.rounded, self.precision = True, SINGLE

    def _call_by(self, change):
        """Puts ``change`` of it in the place of each function."""
        fresh, alongside = self.fresh, self.alongside
        self.function = change(self.function)
        self.reference = self.reference and change(self.reference)
        self.fresh = fresh and (lambda: change(fresh()))
        self.alongside = alongside and (lambda c: change(alongside(c)))

    def _read_by_half(self):
        """The symmetric inputs of which forward reads one triangle, as cholesky does."""
        found = []
        for i, t in enumerate(self.inputs):
            if self.random or self.writes or not _is_symmetric(t):
                continue
            with torch.no_grad():
                now = self.outputs(self.inputs)
                for half in (t.tril(), t.triu()):
                    try:
                        then = self.outputs(
                            [half if k == i else x for k, x in enumerate(self.inputs)]
                        )
                    except Exception:  # it asks for a symmetric one
                        continue
                    if all(map(same, now, then)):
                        found.append(i)
                        break
        return found

    def _raw(self, tensors, function=None, seed=None):
        function = function or self.function
        own = self.own if function is self.function else generators_of(function)
        seeded(self.seed if seed is None else seed, own)
        out = function(*tensors)
        return tuple(real(t) for t in flat(out) if t.is_floating_point() or t.is_complex())

    def outputs(self, tensors, function=None, seed=None):
        """The floating outputs, for the same random numbers each time."""
        if self.writes:
            tensors = [t.clone() for t in tensors]
        return self._raw(tensors, function, seed)

    def leaves(self, dtype=None, needs=None, inputs=None):
        """The inputs as leaves that need a gradient (or those in ``needs`` alone)."""
        tensors = self.inputs if inputs is None else inputs
        return [
            t.detach().to(dtype or self.dtype).clone().requires_grad_(needs is None or i in needs)
            for i, t in enumerate(tensors)
        ]

    def cotangents(self, outputs):
        """Fixed numbers of both signs to send back, one an output."""
        generator = torch.Generator().manual_seed(self.seed + 11)
        return [
            torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.device, t.dtype)
            for t in outputs
        ]

    def gradients(self, leaves, function=None, cotangents=None):
        """dL/d(leaf) of L = Σ ⟨cotangent, output⟩ for each leaf that needs one; None where unused."""
        outputs = self.outputs(leaves, function)
        return self.backward(outputs, leaves, cotangents=cotangents)

    def backward(self, outputs, leaves, cotangents=None, wrt=None, **options):
        """The gradients of ``wrt``, or of the leaves: the tensors that the outputs were made of, one an input.

        cotangents: in the place of the fixed ones; of an output whose is None, nothing comes back.
        """
        wrt = [t for t in leaves if t.requires_grad] if wrt is None else wrt
        cotangents = self.cotangents(outputs) if cotangents is None else cotangents
        pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True)]
        pairs = [(o, c) for o, c in pairs if o.requires_grad and c is not None]
        if not pairs:
            return [None for _ in wrt]
        outs, cotangents = zip(*pairs, strict=True)
        grads = self.with_parameters(
            leaves, lambda: torch.autograd.grad(outs, wrt, cotangents, allow_unused=True, **options)
        )
        # One that is zero by nature, as of the sum of a softmax, is rounding alone: zero, then.
        small = self.rounding(cotangents)
        return [torch.zeros_like(g) if _is_rounding(g, small) else g for g in grads]

    def rounding(self, cotangents):
        """What a gradient that is zero by nature may be, by the size that a slope has here."""
        return 200 * DOUBLE.eps * self.slope * self.spread * max(map(largest, cotangents))

    def with_parameters(self, leaves, run):
        """``run()`` with the leaves as the modules' parameters: backward of a checkpoint calls layers again."""
        for function in (self.function, self.reference):
            holding = getattr(function, "holding", None)
            if holding is not None:
                run = partial(holding, leaves, run)
        return run()

    def loss(self, cotangents):
        """(tensors -> Σ ⟨cotangent, output⟩ over the outputs that a gradient flows through, its rounding)."""

        def loss(tensors):
            with torch.no_grad():
                outputs = self.outputs(tensors)
            terms = zip(cotangents, outputs, self.differentiable, strict=True)
            return sum(float((c * o).double().sum()) for c, o, flows in terms if flows)

        with torch.no_grad():
            outputs = self.outputs(self.inputs)
        if self.cancels:
            outputs = [torch.ones_like(o) for o in outputs]
        sizes = [
            (c.double() * o.double()).abs().nan_to_num(0.0, 0.0, 0.0).sum().item()
            for c, o in zip(cotangents, outputs, strict=True)
        ]
        return loss, 4 * self.precision.eps * sum(sizes)

    def questions(self, cotangents=None):
        """(label's index, Question) of each input's gradient, as backward answers it."""
        with torch.no_grad():
            outputs = self.outputs(self.inputs)
        cotangents = self.cotangents(outputs) if cotangents is None else cotangents
        grads = self.gradients(self.leaves(), cotangents=[c.clone() for c in cotangents])
        loss, noise = self.loss(cotangents)
        beside = []

        def nearby(i):
            """The gradients at a few points close by, to which a kink is none."""
            if not beside:
                for k in range(6):
                    generator = torch.Generator().manual_seed(self.seed + 41 + k)
                    moved = [
                        t + 1e-6 * torch.randn(t.shape, generator=generator, dtype=t.dtype)
                        for t in self.inputs
                    ]
                    again = [c.clone() for c in cotangents]
                    beside.append(self.gradients(self.leaves(inputs=moved), cotangents=again))
            return [grads[i] for grads in beside]

        return [
            Question(
                loss,
                self.inputs,
                i,
                grad,
                noise,
                self.precision,
                self.seed,
                partial(nearby, i),
                self.mixed,
            )
            for i, grad in enumerate(grads)
        ]

    def tolerance(self, stated):
        """What two computations may differ by, at least their precision."""
        return max(stated, self.precision.exact) if self.precision is SINGLE else stated

    def compared(self, *given: Any, **options: Any):
        """``compared`` of two lists of tensors, by the size that all of them may cancel out from."""
        options["size"] = self.least
        return compared(*given, **options)

    @property
    def least(self):
        """The size of a slope where the outputs cancel out: what is far below it is rounding."""
        return self.slope if self.cancels else 0.0

    def declared(self, name):
        """The reason why the gradient of that input is not the true derivative, or None."""
        return self.surrogate.get(name) if isinstance(self.surrogate, dict) else self.surrogate

    @property
    def batch(self):
        """The number of examples, or None."""
        return self.inputs[0].shape[0] if self.batched else None

    def at(self, inputs, **changes):
        """The same function at other inputs."""
        changes = {
            "kinks": (),
            "lines": [],
            "wrong": {},
            "alongside": None,
            "repeat": None,
            **changes,
        }
        return replace(self, inputs=list(inputs), **changes)

    def near(self, inputs, function):
        """``function`` at other inputs, with what is known of the numbers and without asking again."""
        other = copy(self)
        other.inputs, other.function, other.lines, other.wrong = list(inputs), function, [], {}
        return other

    def twin(self):
        """The reference in the place of what is checked, or None."""
        if self.reference is None:
            return None
        try:
            return self.at(self.inputs, function=self.reference, reference=None, other_mode=None)
        except Exception:  # it may refuse these inputs
            return None

    def reported_once(self, made, after):
        made = reported_once(tolerated(self, made), self.lines, after)
        self.lines.append(made)
        return made


def padding_rows(outputs, leaves):
    """{input: row} of the weights of embeddings with a padding row, which means to get no gradient."""
    rows = {}
    for node in nodes(outputs):
        if getattr(getattr(node, "_forward_cls", None), "op", None) is Embedding:
            row = options_of(node)["padding_idx"]
        else:
            row = getattr(node, "_saved_padding_idx", -1)
        read = [getattr(before, "variable", None) for before, _ in node.next_functions]
        for i, leaf in enumerate(leaves):
            if 0 <= row < 2**63 and any(leaf is weight for weight in read):
                rows[i] = row
    return rows


def _is_symmetric(t):
    square = t.dim() > 1 and t.shape[-1] == t.shape[-2] > 1
    return square and t.equal(t.mT) and bool(t.ne(t.tril().triu()).any())


def symmetrised(function, which):
    """``function`` of the symmetric parts of these inputs: the half that is not read gets its share so."""

    def symmetric(tensors):
        return [
            (t + t.mT) / 2 if i in which and t.dim() > 1 and t.shape[-1] == t.shape[-2] else t
            for i, t in enumerate(tensors)
        ]

    def called(*tensors):
        return function(*symmetric(tensors))

    called_again = getattr(function, "holding", None)
    if called_again is not None:
        called.holding = lambda tensors, run: called_again(symmetric(tensors), run)
    return called


def holding(function, inputs, rows):
    """``function`` with one row of some inputs held at what it is here (in other shapes at zero), so that no
    derivative asks for it."""
    values = {i: inputs[i].detach().clone() for i in rows}

    def changed(tensors):
        given = list(tensors)
        for i, row in rows.items():
            t, value = given[i], values[i].to(given[i].dtype)
            if t.dim() == 2:
                at = (torch.arange(len(t)) == row).unsqueeze(-1)
                given[i] = torch.where(at, value if t.shape == value.shape else 0.0, t)
        return given

    def held(*tensors):
        return function(*changed(tensors))

    called_again = getattr(function, "holding", None)
    if called_again is not None:
        held.holding = lambda tensors, run: called_again(changed(tensors), run)
    return held


def _is_rounding(g, small):
    """Of float64 alone: what float32 has lost is for the lines to see that compare the two."""
    if g is None or g.dtype is not torch.float64:
        return False
    return 0 < largest(g) < small and bool(g.isfinite().all())


def real(t):
    """A complex tensor as its real and imaginary parts."""
    return torch.stack((t.real, t.imag), -1) if t.is_complex() else t


def same(a, b):
    """Equal, with NaN at the same places."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def away_from(t, kinks, distance=0.02):
    """t with every element at least ``distance`` away from every kink, on the side where it was."""
    for kink in kinks:
        near = (t - kink).abs() < distance
        t = torch.where(near, kink + torch.where(t < kink, -2 * distance, 2 * distance), t)
    return t
