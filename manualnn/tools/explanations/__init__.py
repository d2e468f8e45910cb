"""A network, layer by layer: what it computes forward and backward, on which shapes, what it saves.

    print(manualnn.explain(model, x))
    manualnn.explain(model, x).plot("network.svg")
    print(manualnn.explain(model, x).numbers())

``python -m manualnn explain --hidden_units "[128, 64]" --dataset Digits`` does the same on the command line.
"""

from typing import Any

import torch

from manualnn._torch import tree_iter
from manualnn.tools.explanations.page import Layer, layers_of
from manualnn.tools.explanations.report import Explanation, Step, steps_of
from manualnn.tools.explanations.saved import SavedTensor, by_op, give
from manualnn.tools.explanations.trace import trace
from manualnn.tools.ledgers import dtype_of, ledger, ours

__all__ = ["Explanation", "Layer", "SavedTensor", "Step", "explain"]


def explain(
    model: torch.nn.Module,
    *inputs: Any,
    autocast: torch.dtype | str | None = None,
    name: str | None = None,
) -> Explanation:
    """Says what each layer of a model computes, forward and backward, and what it saves.

    A chain of fully connected layers, whatever it is written as (nn.MLP, a Sequential, a module of your
    own), is explained in the page's notation: a[l-1] -> z[l] = W[l] a[l-1] + b[l] -> a[l] = g(z[l]), and back.
    Any other model is explained op by op, each with the equations of the hand-written op.

    Training steps are run, on copies: the model, its statistics and gradients, the inputs and the random
    state stay as they are. A model of torch.nn's layers is explained as ``convert`` makes it; equations, g
    and g′ are read from the ops that ran, bytes are the ledger's, FLOPs those of the matrix products,
    convolutions and attentions that ran, a multiplication and an addition counted as two.

    Args:
        model: any module, in the mode (training or evaluation) in which it is to be explained.
        inputs: what it is called with. Their numbers play no part, but where a model's own branches do.
        autocast: None, or the dtype of an autocast region: torch.bfloat16, or "bf16".
        name: of the model, for the headline; by default its class's.

    Returns:
        Explanation: prints as text; ``to_json()``, ``plot(path)``, ``numbers()``.

    Raises:
        TypeError: ``model`` is not a torch.nn.Module.
        ValueError: none of its ops is written by hand; or ``autocast`` cannot be read.
        Whatever the model raises on its inputs.
    """
    found = ledger(model, *inputs, autocast=autocast, name=name)
    dtype = dtype_of(autocast)
    twin = ours(model)
    ops, returned = trace(twin, inputs, dtype)
    if not any(op.cls for op in ops):
        raise ValueError(_nothing(found.target, ops))
    dtype = dtype or next((p.dtype for p in model.parameters()), torch.get_default_dtype())
    saved = by_op(found.ours.entries, ops)
    tensors = [t for t in tree_iter(inputs) if isinstance(t, torch.Tensor)]
    layers, steps = layers_of(ops, twin, tensors, dtype), None
    if layers is None:
        steps = steps_of(ops, saved)
    else:
        give(layers, saved, [name for name, _ in twin.named_modules()])
    m = found.batch if layers is None else layers[0].m
    for op in ops:
        op.node = None  # the graph is no longer needed
    return Explanation(twin, found.target, found, dtype, m, layers, steps, returned, tensors, ops)


def _nothing(name: str | None, ops: Any) -> str:
    own = sorted({op.name for op in ops if op.listed})
    if not own:
        return f"{name} has nothing to explain: no op in it has a gradient"
    return f"{name} has no op that is written by hand; torch's own ran: {', '.join(own)}"
