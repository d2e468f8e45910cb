"""A copy of a model, also of one that holds what a call has made."""

import copy
from typing import Any, TypeVar

import torch

Model = TypeVar("Model", bound=torch.nn.Module)


def copied(model: Model) -> Model:
    """A deep copy. What a call has left in an attribute (an attention map, a weight that a norm has divided)
    is copied as a value, without its history; copy.deepcopy refuses it: it takes leaves of the graph alone.
    It refuses the buffers of a lazy layer that has not run, too: of those new ones are made."""
    memo = {}
    for module in model.modules():
        for t in _tensors(vars(module), set()):
            if isinstance(t, torch.nn.parameter.UninitializedBuffer):
                options: dict[str, Any] = {
                    "device": t.device,
                    "dtype": t.dtype,
                    "persistent": t.persistent,
                }
                memo[id(t)] = torch.nn.parameter.UninitializedBuffer(**options)
            elif not t.is_leaf:
                memo[id(t)] = t.detach().clone()
    return copy.deepcopy(model, memo)


def _tensors(value, seen):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
        seen.add(id(value))
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part, seen)
