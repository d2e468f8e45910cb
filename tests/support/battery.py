"""What every battery needs: a row's sample, its leaves, its gradients, and the bound for two results."""

import os
import re

import pytest
import torch
from ops import OPS

from manualnn.autograd import faces


def each(condition):
    """A test over the rows for which the condition holds."""
    rows = [op for op in OPS if condition(op)]
    return pytest.mark.parametrize("op", rows, ids=lambda op: op.id)


each_op = each(lambda op: True)

# A compiler takes half a second for a row: the last of an op, the richest, stands for all of them, and that for
# images for signals and volumes, unless EVERY_ROW is set.
EVERY_ROW = "EVERY_ROW" in os.environ
_richest = {op.name: op for op in OPS}


def not_another_dimension(name):
    """Not an op for signals or volumes that there is for images: those go through the same code."""
    of_images = re.sub("[13]d$", "2d", name)
    exists = hasattr(torch.nn, of_images) or hasattr(torch.nn.functional, of_images)
    return of_images == name or not exists


each_traced = each(
    lambda op: EVERY_ROW or (op is _richest[op.name] and not_another_dimension(op.name))
)


def call(op, function, tensors):
    torch.manual_seed(7)
    return function(*tensors)


def leaves(op, tensors, needs=None):
    """The tensors as leaves; those that are floating (or named in needs) require a gradient."""
    allowed = range(len(tensors)) if op.differentiable is None else op.differentiable
    made = []
    for i, t in enumerate(tensors):
        wants = t.is_floating_point() and i in allowed and (needs is None or i in needs)
        made.append(t.detach().clone().requires_grad_(wants))
    return made


def differentiated(tensors):
    return [t for t in tensors if t.requires_grad]


def gradients(op, function, tensors, create_graph=False):
    """The output and, for an incoming gradient of both signs, the gradients of all that needs one."""
    out = call(op, function, tensors)
    torch.manual_seed(3)
    d_out = torch.randn(out.shape, dtype=out.dtype)  # the same numbers whatever the strides are
    wrt = differentiated(tensors)
    if not out.requires_grad:
        return out, []
    grads = torch.autograd.grad(out, wrt, d_out, create_graph=create_graph, allow_unused=True)
    return out, [torch.zeros_like(t) if g is None else g for t, g in zip(wrt, grads, strict=True)]


def sample(op, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return op.inputs(dtype)


def assert_close(ours, theirs, dtype, factor=1.0):
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6}[dtype] * factor
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)


def nodes_of_ours(out):
    """The nodes of the graph that stand for an op of ours, which their face names."""
    found, waiting, seen = [], [out.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if getattr(getattr(type(node), "_forward_cls", None), "op", None) is not None:
            found.append(node)
        waiting += [before for before, _ in node.next_functions]
    return found


def formula_and_kernel(node, *grads):
    """The gradients of a node's inputs by the op's formula and by its kernel; None where it has no kernel.

    grads: what flows back to each of the op's outputs; random if not given.
    """
    op = type(node)._forward_cls.op
    if not grads:
        made = (torch.randn(m.shape, dtype=m.dtype) for m in node._input_metadata)
        grads = [*made, *(None,) * ((op.outputs or 1) - len(node._input_metadata))]
        grads = grads[: op.outputs]
    needs = faces.by_input(op.forward)(node.needs_input_grad)
    saved = node.saved_tensors
    if op.seen is not None:
        saved = saved[: len(saved) // 2]
    read = needs, *grads, *saved, *node.options
    with torch.no_grad():
        formula = op.gradients(*read)
        kernel = op.kernel_gradients
        by_kernel = None if kernel is None else kernel(*read, *getattr(node, "layout", ()))
    return _listed(formula), None if by_kernel is None else _listed(by_kernel)


def _listed(found):
    return found if isinstance(found, tuple) else (found,)
