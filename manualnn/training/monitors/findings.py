"""What is wrong with a run, in words: each finding a function of its history, and of nothing else.

A finding says at which step, in which layer, what is seen, and what people do about it. The bounds are wide:
a healthy run must hear nothing.
"""

import math
import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from manualnn.training.monitors.history import PATIENCE, Epoch, History, Record

# Between the first and the last layer. Torch's own start shrinks dz by 2.4 a layer: 1e-4 is ten layers.
VANISHED = 1e-4
EXPLODED = 1e3
# Of a layer's units.
TOO_MANY_DEAD = 0.5
TOO_MANY_SATURATED = 0.5
# log10 of the relative update; about -3 is good, and a run at -1.5 or -4.5 may be a good one.
UPDATE_HIGH = -1.0
UPDATE_LOW = -5.5
STEADY = 5  # records in a row that must agree
# Of the loss at chance: above it, nothing has been learned.
AT_CHANCE = 0.985
LONG = 500  # steps, where an epoch has more
RISEN = 2.0  # of the loss at the start, or at chance
OVERFIT = 1.2  # of the best validation loss


@dataclass(frozen=True)
class Finding:
    """kind: one of the headings below; step: steps taken; layer: its label, or None for the whole network;
    what: what is seen; advice: what people do about it."""

    kind: str
    step: int
    layer: str | None
    what: str
    advice: str

    def __str__(self) -> str:
        where = f", layer {self.layer}" if self.layer else ""
        return f"{self.kind} (step {self.step}{where}): {self.what}. What helps: {self.advice}."

    def markdown(self) -> str:
        where = f", layer `{self.layer}`" if self.layer else ""
        # Markdown makes a dash of two hyphens.
        advice = re.sub(r"(--[\w.]+)", r"`\1`", self.advice)
        what = f"**{self.kind}**, step {self.step}{where}: {self.what}."
        return f"{what}\n\nWhat helps: {advice}."


def findings(history: History) -> Iterator[Finding]:
    """All that is to be said of the history as it is now, one of a kind at most."""
    for look in LOOKS:
        found = look(history)
        if found is not None:
            yield found


def vanishing(history: History) -> Finding | None:
    latest = _latest(history, 3)
    ratios = [_first_over_last(record) for record in latest]
    if len(latest) < 3 or not all(r is not None and r < VANISHED for r in ratios):
        return None
    if _switched_off(latest[-1]) is not None:
        return None  # it does not shrink on its way, it stops
    layer = _first_with_error(latest[-1])
    return Finding(
        "vanishing gradients",
        latest[-1].step,
        history.labels[layer],
        f"|dz| there is {_times(ratios[-1])} of the last layer's, so the first layers hardly learn",
        "ReLU or GELU in place of sigmoid and tanh; weights scaled to their layer (He, Glorot); a norm "
        "between the layers; residual connections; fewer layers",
    )


def exploding(history: History) -> Finding | None:
    latest = _latest(history, 3)
    # A run that is lost at its start leaves a single record.
    if len(latest) < (1 if history.diverged else 3):
        return None
    lost = next((i for i in range(len(latest[-1].layers)) if _is_lost(latest[-1], i)), None)
    ratios = [_first_over_last(record) for record in latest]
    if lost is not None:
        layer, what = lost, "the gradient is no longer finite"
    elif all(r is not None and r > EXPLODED for r in ratios):
        layer = _first_with_error(latest[-1])
        what = f"|dz| there is {_times(ratios[-1])} times the last layer's"
    else:
        return None
    return Finding(
        "exploding gradients",
        latest[-1].step,
        history.labels[layer],
        what,
        "smaller weights at the start (He, Glorot); a norm between the layers; "
        "--trainer.gradient_clip_val 1; a lower learning rate",
    )


def dead(history: History) -> Finding | None:
    worst, latest = _worst(history, "dead", TOO_MANY_DEAD), _latest(history, 3)
    stopped = {_switched_off(record) for record in latest}
    if worst is not None:
        layer, share = worst
        what = f"{share:.0%} of its units put out 0 for every example and learn nothing"
    elif len(latest) == 3 and len(stopped) == 1 and None not in stopped:
        (layer,) = stopped
        what = "no gradient comes back to it: all the units behind it are switched off"
    else:
        return None
    return Finding(
        "dead units",
        history.step,
        history.labels[layer],
        what,
        "a lower learning rate, or a warm-up; LeakyReLU, ELU or GELU in place of ReLU; weights scaled by "
        "He, biases at 0; a norm before the activation",
    )


def saturated(history: History) -> Finding | None:
    worst = _worst(history, "saturated", TOO_MANY_SATURATED)
    if worst is None:
        return None
    layer, share = worst
    return Finding(
        "saturation",
        history.step,
        history.labels[layer],
        f"{share:.0%} of its units sit on the flat ends of their activation, where g' is about 0",
        "smaller weights at the start (Glorot); inputs of mean 0 and deviation 1 (--data.normalize auto); a "
        "lower learning rate; a norm before the activation, or ReLU",
    )


def updates_too_large(history: History) -> Finding | None:
    for layer, median in _steady_updates(list(history.records)[-STEADY:]):
        if median > UPDATE_HIGH:
            return Finding(
                "updates too large",
                history.step,
                history.labels[layer],
                f"a step changes its weights by {10**median:.0%} (log10 {median:.1f}; about -3 is usual)",
                "a learning rate about ten times lower; a warm-up; --trainer.gradient_clip_val 1",
            )
    return None


def updates_too_small(history: History) -> Finding | None:
    # Small updates are right where the rate is being lowered, or still rises, or little is left to learn.
    records = [r for r in history.records if r.rate >= 0.5 * history.top_rate][-STEADY:]
    rising = len(records) > 1 and records[-1].rate > records[0].rate
    if rising or records != list(history.records)[-STEADY:] or _has_learned(history):
        return None
    found = _steady_updates(records)
    if not found or any(median > UPDATE_LOW for _, median in found):
        return None
    layer, median = min(found, key=lambda pair: pair[1])
    return Finding(
        "updates too small",
        history.step,
        history.labels[layer],
        f"a step changes no layer's weights by more than {10**UPDATE_LOW:.0e} of their size, these by "
        f"{10**median:.0e} (log10 {median:.1f}; about -3 is usual)",
        "a learning rate ten to a hundred times higher; an optimiser such as Adam, which scales the steps "
        "itself",
    )


def learning_rate_too_high(history: History) -> Finding | None:
    if history.start is None:
        return None
    start = max(history.start, history.chance or 0.0)
    if history.diverged:
        what = f"the loss began at {history.start:.3g} and is no longer finite"
    elif history.peak > RISEN * start:
        what = f"the loss began at {history.start:.3g} and rose to {history.peak:.3g}"
    else:
        return None
    return Finding(
        "learning rate too high",
        history.step,
        None,
        what,
        "a learning rate three to ten times lower; a warm-up; --trainer.gradient_clip_val 1",
    )


def at_chance(history: History) -> Finding | None:
    if history.chance is None or not history.epochs:
        return None
    latest = history.epochs[-1]
    if latest.number + 1 < PATIENCE and latest.step < LONG:
        return None
    if not AT_CHANCE * history.chance < latest.train_loss < RISEN * history.chance:
        return None  # above it the loss has risen, and that is another finding
    return Finding(
        "loss at chance",
        latest.step,
        None,
        f"after {latest.number + 1} epochs the training loss is {latest.train_loss:.3g}, that of guessing "
        f"by how frequent the classes are is {history.chance:.3g}",
        "a learning rate ten times lower, then ten times higher; look whether labels and pictures belong "
        "together; try to learn a single batch by heart (--trainer.overfit_batches 1); less dropout",
    )


def overfitting(history: History) -> Finding | None:
    seen = [epoch for epoch in history.epochs if epoch.val_loss is not None]
    if len(seen) <= PATIENCE:
        return None
    best = min(seen, key=lambda epoch: epoch.val_loss)
    since: list[Epoch] = [e for e in seen if e.number > best.number][-PATIENCE:]
    if len(since) < PATIENCE:
        return None
    rising = all(epoch.val_loss > OVERFIT * best.val_loss for epoch in since)
    if not rising or since[-1].train_loss > 0.5 * since[-1].val_loss:
        return None
    if since[-1].train_loss >= best.train_loss:
        return None
    return Finding(
        "overfitting",
        since[-1].step,
        None,
        f"the validation loss was {best.val_loss:.3g} after epoch {best.number} and is "
        f"{since[-1].val_loss:.3g}, while the training loss fell to {since[-1].train_loss:.3g}",
        "stop there (best.ckpt can be chosen by --checkpoint.monitor val/loss); more data, or --data.shift "
        "and --data.flip; --model.dropout; --optimizer.weight_decay; a smaller network",
    )


LOOKS: tuple[Callable[[History], Finding | None], ...] = (
    vanishing,
    exploding,
    dead,
    saturated,
    learning_rate_too_high,
    updates_too_large,
    updates_too_small,
    at_chance,
    overfitting,
)


def _latest(history: History, count: int) -> list[Record]:
    """The last records in which some gradient arrived."""
    return [r for r in history.records if any(s.dz_norm is not None for s in r.layers)][-count:]


def _first_with_error(record: Record) -> int:
    return next(i for i, signals in enumerate(record.layers) if signals.dz_norm is not None)


def _first_over_last(record: Record) -> float | None:
    """|dz| of the first layer that has one over that of the last; None where there is nothing to compare."""
    norms = [signals.dz_norm for signals in record.layers if signals.dz_norm is not None]
    if len(norms) < 2 or not norms[-1] or not all(map(math.isfinite, norms)):
        return None
    return norms[0] / norms[-1]


def _switched_off(record: Record) -> int | None:
    """The layer at which the error stops: 0 there, and nearly whole in the next one."""
    norms = [signals.dz_norm for signals in record.layers]
    last = next((n for n in reversed(norms) if n), None)
    if last is None:
        return None
    for layer in range(len(norms) - 2, -1, -1):
        if (
            norms[layer] == 0
            and norms[layer + 1] is not None
            and norms[layer + 1] > VANISHED * last
        ):
            return layer
    return None


def _is_lost(record: Record, layer: int) -> bool:
    signals = record.layers[layer]
    return any(n is not None and not math.isfinite(n) for n in (signals.dz_norm, signals.dW_norm))


def _worst(history: History, name: str, bound: float) -> tuple[int, float] | None:
    """(layer, share) of the largest share above the bound, in the last record."""
    if not history.records:
        return None
    shares = [getattr(signals, name) or 0.0 for signals in history.records[-1].layers]
    layer = max(range(len(shares)), key=shares.__getitem__, default=None)
    return None if layer is None or shares[layer] <= bound else (layer, shares[layer])


def _steady_updates(records: list[Record]) -> list[tuple[int, float]]:
    """(layer, median of its log10 updates) over STEADY records, of layers that are updated in all."""
    if len(records) < STEADY:
        return []
    found = []
    for layer in range(len(records[-1].layers)):
        values = [record.layers[layer].update for record in records if layer < len(record.layers)]
        if len(values) == STEADY and None not in values:
            found.append((layer, statistics.median(values)))
    return found


def _has_learned(history: History) -> bool:
    latest = list(history.last)[-20:]
    return bool(latest) and statistics.median(latest) < 0.7 * history.start


def _times(ratio: float) -> str:
    return f"{ratio:.0e}"
