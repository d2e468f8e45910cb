"""What the ledger found, given to the ops and to the layers of the page."""

from dataclasses import dataclass
from typing import Any

from manualnn.ops.activations import LogSoftmax, Softmax
from manualnn.ops.network import Network
from manualnn.tools.explanations.page import Layer
from manualnn.tools.ledgers.words import WEIGHT

MASKS = ("bool", "uint8")


@dataclass(frozen=True)
class SavedTensor:
    """A tensor that backward reads.

    what: its name on the page, or ""; shape: on the page examples are columns, in a trace as in memory;
    dtype; bytes: 0 where it is not saved, or counted elsewhere; why: in words.
    """

    what: str
    shape: tuple
    dtype: str
    bytes: int
    why: str


def by_op(entries, ops):
    """{id of an op: the ledger's entries that are its own}; an entry of none is given to id None.

    A layer that is called several times has its entries in the order of its calls.
    """
    ops = [op for op in ops if op.node is not None]
    same: dict[Any, list] = {}
    found: dict[int | None, list] = {None: []}
    for op in ops:
        same.setdefault((op.layer, op.name), []).append(op)
        same.setdefault(op.layer, []).append(op)
    waiting = {}
    for entry in entries:
        waiting.setdefault((entry.layer, entry.op), []).append(entry)
    for (layer, name), group in waiting.items():
        takers = same.get((layer, name)) or same.get(layer)
        if takers is None:
            found[None] += group
            continue
        share = max(1, len(group) // len(takers)) if len(group) % len(takers) == 0 else len(group)
        for i, entry in enumerate(group):
            found.setdefault(id(takers[min(i // share, len(takers) - 1)]), []).append(entry)
    return found


def give(layers: list[Layer], found, order):
    """Names what each layer saves as the page does.

    order: the paths of the model's modules. What the ledger found in a module that left no op of its own
    here (of an MLP, which is one node only where all of a layer is frozen or nothing) goes by them.
    """
    for layer in layers:
        for op in layer.ops:
            own = [one for one in layers if op in one.ops]
            if own[0] is not layer:
                continue
            entries = found.get(id(op), [])
            _give_copies(own, [e for e in entries if e.kind == WEIGHT])
            entries = [e for e in entries if e.kind != WEIGHT]
            if op.cls is not Network:
                layer.saved += [_named(layer, op.name, entry) for entry in entries]
            else:
                _give_network(own, entries)
    place = {path: i for i, path in enumerate(order)}
    for entry in found[None]:
        at = place.get(entry.layer, 0)
        before = [layer for layer in layers if place.get(layer.name, 0) <= at]
        layer = (before or layers)[-1 if before else 0]
        layer.saved.append(_named(layer, entry.op, entry))


def _named(layer, op, entry):
    s, why = layer.symbols, entry.why
    message = any(word in why for word in ("recomputed", "counted", "the model's input"))
    if op == "Linear":
        what, reason = s["a_prev"], f"d{s['W']} reads it"
    elif op in ("Dropout", "AlphaDropout"):
        bits = (layer.n, layer.m)  # in memory eight to a byte, in a row
        return SavedTensor(s["r"], bits, entry.dtype, entry.bytes, why)
    elif op == "RReLU":
        what, reason = "slopes", f"g′({s['z']}) itself"
    elif layer.g is None:
        what, reason = "", why
    else:
        from_output = layer.g.from_output or layer.g.cls in (Softmax, LogSoftmax)
        a = f"g({s['z']})" if layer.dropout else s["a"]
        what, reason = a if from_output else s["z"], f"gives g′({s['z']})"
        if len(entry.shape) < 2:
            what, reason = "w", "parameter of g"
    return SavedTensor(
        what, turned(entry.shape), entry.dtype, entry.bytes, why if message else reason
    )


def _give_copies(layers, entries):
    """What autocast has cast: parameters, and the input of the first layer; told apart by their shapes."""
    waiting = list(entries)
    for layer in layers:
        s, W, b = layer.symbols, (layer.n, layer.n_prev), (layer.n,)
        for what, shape in ((s["W"], W), (s["b"], b)):
            found = next((e for e in waiting if e.shape == shape and e.bytes), None)
            if found is not None:
                waiting.remove(found)
                shown = shape if len(shape) == 2 else (layer.n, 1)
                why = f"a copy in {found.dtype}"
                layer.saved.append(SavedTensor(what, shown, found.dtype, found.bytes, why))
    for entry in waiting:
        s = layers[0].symbols
        why = f"a copy in {entry.dtype}"
        layers[0].saved.insert(
            0, SavedTensor(s["a_prev"], turned(entry.shape), entry.dtype, entry.bytes, why)
        )


def _give_network(layers, entries):
    """Of the single node: the input if it is saved, then a tensor a hidden layer, then the masks."""
    masks = [e for e in entries if e.dtype in MASKS]
    numbers = [e for e in entries if e.dtype not in MASKS]
    hidden = layers[:-1]
    if len(numbers) > len(hidden):
        s, x = layers[0].symbols, numbers[0]
        why = f"d{s['W']} reads it"
        if not x.bytes:
            why += ": " + x.why.partition(": ")[2]
        layers[0].saved.append(SavedTensor(s["a_prev"], turned(x.shape), x.dtype, x.bytes, why))
        numbers = numbers[1:]
    for layer, entry in zip(hidden[::-1], numbers[::-1], strict=False):
        s = layer.symbols
        what, after = s["a" if layer.g.from_output else "z"], f"dW[{layer.l + 1}]"
        if not layer.reached:
            what = what if not layer.g.from_output or not layer.dropout else f"g({s['z']})"
            why = f"{after} reads it" if what == s["a"] else f"{s['a']} is made from it for {after}"
        elif not layer.g.from_output:
            why = f"gives g′({s['z']}); {s['a']}, which {after} reads, is recomputed from it"
        elif layer.dropout:
            what = f"g({s['z']})"
            why = f"gives g′({s['z']}); times {s['r']} it is {s['a']}, which {after} reads"
        else:
            why = f"gives g′({s['z']}), and {after} reads it"
        layer.saved.append(SavedTensor(what, turned(entry.shape), entry.dtype, entry.bytes, why))
    for layer, entry in zip(hidden[::-1], masks[::-1], strict=False):
        bits = "a bit" if entry.dtype == "uint8" else "a byte"
        shape = (layer.n, layer.m)
        why = f"the mask, {bits} a unit"
        layer.saved.append(SavedTensor(layer.symbols["r"], shape, entry.dtype, entry.bytes, why))


def turned(shape):
    """(*, n) in memory -> (n, m) on the page."""
    if len(shape) < 2:
        return tuple(shape)
    m = 1
    for size in shape[:-1]:
        m *= size
    return (shape[-1], m)
