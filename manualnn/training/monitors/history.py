"""What a run has shown so far, as plain numbers: what the findings are drawn from."""

import math
from collections import deque
from dataclasses import dataclass, field, fields

from manualnn.training.monitors.layers import LayerSignals

# What the findings ask for, and little more: it is in each checkpoint, and read at each watched step.
RECORDS = 8  # watched steps
LAST = 20  # losses before now
PATIENCE = 3  # epochs in which something should have been learned, or seen in validation
SPIKE = 5  # losses in a row that count as one: a single batch may be odd


@dataclass
class Record:
    """A watched step: its number from 1, the learning rate, and the signals of each layer."""

    step: int
    rate: float
    layers: list[LayerSignals]


@dataclass
class Epoch:
    """The end of an epoch: mean training loss, validation loss (None without one)."""

    number: int
    step: int
    train_loss: float
    val_loss: float | None = None


@dataclass
class History:
    """What is remembered of a run.

    labels: of the layers, first to last. records: the last ones. epochs: the last one, the best one by its
    validation and the last that were validated. start: the loss of the first step; last: of the last steps;
    peak: the highest median of SPIKE in a row. chance: the loss of who knows how frequent each class is and
    nothing else, None where that is not known. top_rate: the highest learning rate so far. step: steps taken.
    diverged: whether the loss stopped being finite.
    """

    labels: list[str] = field(default_factory=list)
    records: deque[Record] = field(default_factory=lambda: deque(maxlen=RECORDS))
    start: float | None = None
    peak: float = 0.0
    last: deque[float] = field(default_factory=lambda: deque(maxlen=LAST))
    epochs: list[Epoch] = field(default_factory=list)
    chance: float | None = None
    top_rate: float = 0.0
    step: int = 0
    diverged: bool = False

    def __post_init__(self):
        self._row = deque(list(self.last)[-SPIKE:], maxlen=SPIKE)

    def add_losses(self, losses: list[float]) -> None:
        for loss in losses:
            if self.start is None:
                self.start = loss
            self.last.append(loss)
            self._row.append(loss)
            if loss > self.peak and len(self._row) == SPIKE:
                self.peak = max(self.peak, sorted(self._row)[SPIKE // 2])

    def add_record(self, record: Record) -> None:
        self.records.append(record)
        self.top_rate = max(self.top_rate, record.rate)

    def add_epoch(self, epoch: Epoch) -> None:
        self.epochs.append(epoch)
        validated = [e for e in self.epochs if e.val_loss is not None]
        kept = [epoch, *validated[-PATIENCE:]]
        if validated:
            kept.append(min(validated, key=lambda e: e.val_loss))
        self.epochs = [e for e in self.epochs if any(e is one for one in kept)]

    def state_dict(self) -> dict:
        """Plain numbers, lists and names: a checkpoint is read with weights_only."""
        state = {f.name: getattr(self, f.name) for f in fields(self)}
        return state | {
            "labels": list(self.labels),
            "last": list(self.last),
            # Without the names of the fields: torch.save takes its time for each of them.
            "records": [(r.step, r.rate, [_values(s) for s in r.layers]) for r in self.records],
            "epochs": [_values(epoch) for epoch in self.epochs],
        }

    def load_state_dict(self, state: dict) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self.last = deque(state["last"], maxlen=LAST)
        self._row = deque(list(self.last)[-SPIKE:], maxlen=SPIKE)
        self.epochs = [Epoch(*values) for values in state["epochs"]]
        self.records = deque(
            (
                Record(step, rate, [LayerSignals(*values) for values in layers])
                for step, rate, layers in state["records"]
            ),
            maxlen=RECORDS,
        )


def _values(of: LayerSignals | Epoch) -> tuple:
    """In the order of the fields."""
    return tuple(vars(of).values())


def chance_loss(
    counts: list[float], loss: str, weights: list[float] | None = None, smoothing: float = 0.0
) -> float | None:
    """The least loss of scores that are the same for every image.

    cross_entropy: -sum v log(v / sum v), v = w q the classes' shares q, smoothed, times their weights w;
    log C where the classes are equally frequent. quadratic: 1/2 sum q (1 - q).
    """
    total = sum(counts)
    if sum(n > 0 for n in counts) < 2:
        return None
    shares = [(1 - smoothing) * n / total + smoothing / len(counts) for n in counts]
    if loss == "quadratic":
        return sum(q * (1 - q) for q in shares) / 2
    v = [w * q for w, q in zip(weights or [1.0] * len(counts), shares, strict=True) if q]
    p = [one / sum(v) for one in v]
    entropy = -sum(one * math.log(one) for one in p)
    # Counted in few images the entropy comes out too small (Miller 1955).
    return sum(v) * min(math.log(len(p)), entropy + (len(p) - 1) / (2 * total))
