"""The nodes of a graph, and which of them were written by hand."""

import torch


def nodes(outputs):
    """The nodes in the graph of the outputs."""
    seen, todo = set(), [o.grad_fn for o in outputs if o.grad_fn is not None]
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += [following for following, _ in node.next_functions if following is not None]
    return seen


def own_nodes(outputs):
    """The nodes of hand-written Functions in the graph of the outputs; torch's own are none of those."""
    return [
        node
        for node in nodes(outputs)
        if isinstance(node, torch.autograd.function.BackwardCFunction)
        and node._forward_cls.__module__.split(".")[0] != "torch"
    ]
