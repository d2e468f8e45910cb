"""What a ledger says: a table, JSON, a picture, the largest batch."""

import json
import os
import re
from dataclasses import asdict, dataclass

from manualnn.tools.ledgers.record import TOP, Entry, Run
from manualnn.tools.table import aligned

UNITS = {"": 1, "B": 1} | {
    prefix + unit: base**power
    for power, prefix in enumerate("KMGT", start=1)
    for unit, base in (("iB", 1024), ("B", 1000), ("", 1024))
}
ROWS = 40  # of a table that is still read


def bytes_of(memory: int | float | str) -> int:
    """Bytes as a number, or as text: "24 GiB", "500MB".

    Raises:
        ValueError: it is neither, or not positive.
    """
    if isinstance(memory, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKMGT]?i?B?)\s*", memory)
        unit = "" if found is None else found[2].replace("k", "K")
        if found is None or unit not in UNITS:
            raise ValueError(
                f"{memory!r} is no size of memory; it reads 24GiB, 500MB or 8000000000"
            )
        memory = float(found[1]) * UNITS[unit]
    if isinstance(memory, bool) or not isinstance(memory, (int, float)) or not memory > 0:
        raise ValueError(f"memory must be a positive number of bytes or a text, not {memory!r}")
    return int(memory)


@dataclass(frozen=True)
class Ledger:
    """What is saved for a model's backward, ours and torch.nn's; all in bytes, for one batch.

    target, batch, autocast: what was measured. torch, ours: a Run each, with ``entries``, ``total`` (their
    sum), ``retained`` (measured from outside, by live storages or the GPU's allocator) and ``peak`` (the most
    that was alive in the step, beside parameters and gradients). parameters (with buffers), gradients,
    inputs: what there is besides. memory: for which the table says the largest batch, or None.

    ``print(ledger)`` shows a table of the model's parts, ``ledger.table()`` every tensor.
    """

    target: str
    batch: int
    autocast: str | None
    torch: Run
    ours: Run
    parameters: int
    gradients: int
    inputs: int
    memory: int | None = None

    @property
    def total(self) -> int:
        """Bytes that ours save."""
        return self.ours.total

    @property
    def torch_total(self) -> int:
        """Bytes that torch.nn saves."""
        return self.torch.total

    @property
    def floor(self) -> int | None:
        """Bytes that no exact backward can do without, unless it does a matrix product twice."""
        # torch's graph asks for what a frozen layer does not need: where we do with less, less does.
        return None if self.torch.floor is None else min(self.torch.floor, self.total)

    @property
    def ratio(self) -> float:
        """Ours over torch.nn's; 1 where torch.nn saves nothing."""
        return self.total / self.torch_total if self.torch_total else 1.0

    def largest_batch(
        self, memory: int | float | str | None = None, optimizer: int = 0, run: Run | None = None
    ) -> int:
        """The largest batch whose training step fits.

        Needed are parameters and buffers, gradients, the optimizer's state, and for each example of the
        batch its input, what is saved for it and what backward works with on top: of the peak that was
        measured, all but the copies of parameters (autocast's) grows with the batch. Workspaces that a
        kernel takes and gives back are known on a GPU only. Measured on few examples, the prediction is
        on the safe side: blocks of a fixed size in which backward works count as if they grew with the batch.

        Args:
            memory: bytes, or a text: "24 GiB"; by default what the ledger was made with.
            optimizer: how many tensors of the parameters' size the optimizer keeps: SGD 0, with momentum
                1, Adam 2.
            run: ``ledger.torch`` for torch.nn's; by default ours.

        Returns:
            int: 0 where not even one example fits.

        Raises:
            ValueError: no memory is given, or it cannot be read.
        """
        memory = self.memory if memory is None else bytes_of(memory)
        if memory is None:
            raise ValueError("largest_batch() needs the memory to fill: bytes or '24 GiB'")
        run = run or self.ours
        fixed = sum(entry.bytes for entry in run.entries if entry.kind == "weight")
        once = self.parameters + self.gradients * (1 + optimizer) + fixed
        growing = max(run.peak - fixed, 0) + self.inputs
        return max(0, int((memory - once) * self.batch // growing)) if growing else 0

    def by_layer(self, depth: int | None = None) -> dict[str, tuple[int, int, list[Entry]]]:
        """{part: (bytes of ours, bytes of torch.nn's, the entries of ours)}, in the order of forward.

        depth: to how many names a path is cut; None for the layers themselves.
        """
        parts = {}
        for of, run in enumerate((self.ours, self.torch)):
            for entry in run.entries:
                part = parts.setdefault(cut(entry.layer, depth), [0, 0, []])
                part[of] += entry.bytes
                if of == 0:
                    part[2].append(entry)
        return {name: tuple(part) for name, part in parts.items()}

    def by_kind(self, run: Run | None = None) -> dict[str, int]:
        """{kind: bytes} of what is saved; ``run`` as in ``largest_batch``."""
        kinds = {}
        for entry in (run or self.ours).entries:
            kinds[entry.kind] = kinds.get(entry.kind, 0) + entry.bytes
        return kinds

    def to_json(self) -> str:
        """All of it as JSON text."""
        runs = {
            name: {"total": run.total, "retained": run.retained, "peak": run.peak}
            | {"entries": [asdict(entry) for entry in run.entries]}
            for name, run in (("ours", self.ours), ("torch", self.torch))
        }
        content = {"target": self.target, "batch": self.batch, "autocast": self.autocast}
        content |= {"ratio": self.ratio, "floor": self.floor, "parameters": self.parameters}
        content |= {"gradients": self.gradients, "inputs": self.inputs, "memory": self.memory}
        if self.memory is not None:
            largest = {"ours": self.largest_batch(), "torch": self.largest_batch(run=self.torch)}
            content["largest_batch"] = largest
        return json.dumps(content | runs, ensure_ascii=False, indent=1)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws what is saved, by kind: torch.nn's bar, ours, the floor.

        Args:
            path: of the picture; its ending says the format (.png, .svg, .pdf).

        Raises:
            ImportError: matplotlib is not installed.
        """
        from manualnn.tools.ledgers.picture import draw

        draw(self, path)

    def __str__(self) -> str:
        if not self.torch.entries and not self.ours.entries:
            return f"{self._headline()}\n  nothing is saved"
        depth = self._depth()
        rows = [("", "ours", "torch.nn", "ratio", "")]
        for name, (ours, theirs, entries) in self.by_layer(depth).items():
            rows.append((name, mib(ours), mib(theirs), over(ours, theirs), most(entries)))
        rows.append(("", "", "", "", ""))
        rows.append(("total", mib(self.total), mib(self.torch_total), f"{self.ratio:.2f}", ""))
        if self.floor is not None:
            note = "one tensor for each matrix product, convolution, attention"
            rows.append(("floor", mib(self.floor), "", over(self.floor, self.torch_total), note))
        peaks = (mib(self.ours.peak), mib(self.torch.peak), over(self.ours.peak, self.torch.peak))
        rows.append(("peak of a step", *peaks, "beside parameters and gradients"))
        if self.memory is not None:
            batches = self.largest_batch(), self.largest_batch(run=self.torch)
            note = f"fits in {self.memory / 2**30:.4g} GiB, without an optimizer's state"
            rows.append(("largest batch", str(batches[0]), str(batches[1]), over(*batches), note))
        return "\n".join([self._headline(), *aligned(rows, right=(1, 2, 3))])

    def table(self) -> str:
        """Every tensor, layer by layer, as text: bytes, shape, dtype, why; torch.nn's below ours."""
        rows = []
        for name, (ours, theirs, entries) in self.by_layer().items():
            rows.append((name, read(ours), "", f"torch.nn {read(theirs)}"))
            for e in entries:
                size = read(e.bytes) if e.bytes else "–"
                shape = "×".join(map(str, e.shape)) or "1"
                rows.append(("  " + e.op, size, f"{shape} {e.dtype}", e.why))
        rows.append(("total", read(self.total), "", f"torch.nn {read(self.torch_total)}"))
        return "\n".join([self._headline(), *aligned(rows, right=(1,))])

    def _depth(self) -> int:
        """The deepest cut of the paths that leaves a table that can be read."""
        deepest = max(
            (e.layer.count(".") + 1 for e in self.ours.entries + self.torch.entries), default=1
        )
        fitting = [d for d in range(1, deepest + 1) if len(self.by_layer(d)) <= ROWS]
        return max(fitting, default=1)

    def _headline(self) -> str:
        region = f", autocast {self.autocast}" if self.autocast else ""
        message = f"{self.target}, batch {self.batch}{region}: "
        if not self.torch_total:
            return message + "nothing needs a gradient, 0 bytes saved for backward"
        return message + f"{mib(self.total)} MiB saved for backward, {self.ratio:.2f} of torch.nn's"


def cut(name: str, depth: int | None) -> str:
    return name if depth is None or name == TOP else ".".join(name.split(".")[:depth])


def most(entries: list[Entry]) -> str:
    """What the most bytes of these are, in words."""
    if not any(entry.bytes for entry in entries):
        return entries[0].why if len(entries) == 1 else "nothing" if entries else ""
    reasons: dict[str, int] = {}
    for entry in entries:
        reasons[entry.why] = reasons.get(entry.why, 0) + entry.bytes
    return max(reasons, key=lambda why: reasons[why])


def mib(size: float) -> str:
    return f"{size / 2**20:.2f}"


def read(size: float) -> str:
    """Bytes with a unit."""
    for unit, base in (("MiB", 2**20), ("KiB", 2**10)):
        if size >= base / 8:
            return f"{size / base:.2f} {unit}"
    return f"{size} B"


def over(a: float, b: float) -> str:
    return f"{a / b:.2f}" if b else ""
