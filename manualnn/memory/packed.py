"""What autograd's hooks are given in place of one saved tensor."""

from typing import Any

import torch

from manualnn._torch import any_autocast, without_torch_function
from manualnn.memory.backward_pass import current_pass
from manualnn.memory.tensors import changed, version_of
from manualnn.memory.verify import mismatch, overwritten


class Packed:
    """A tensor, as autograd would save it; or, in its place, the value that is recomputed and verified.

    tensor, version   the tensor, and the version at which it was saved; tensor None: it is recomputed
    value             the SavedValue that stands for it, by its recipe; None where the tensor is saved
    place             where in the model it was saved, for messages
    fingerprint_of    the function that took the value's fingerprint; None where nothing is verified
    """

    __slots__ = ("__weakref__", "fingerprint_of", "place", "tensor", "value", "version")
    fingerprint_of: Any
    place: Any
    value: Any

    def __init__(self, t):
        # A leaf itself, as autograd saves it: whoever sets its data to another tensor means backward, too.
        self.tensor = t if t.grad_fn is None else t.detach()
        try:
            self.version = t._version
        except RuntimeError:  # an inference tensor: see version_of, which costs a call
            self.version = -1
        self.value = self.place = self.fingerprint_of = None

    def drop(self, value, place, fingerprint_of):
        """Drop the tensor: backward recomputes it by the value's recipe."""
        self.value, self.place, self.fingerprint_of = value, place, fingerprint_of
        self.tensor = None

    def restore(self):
        """Save the tensor after all, as autograd would have, if it still exists."""
        value = self.value
        t = None if value is None else value.original()
        if t is not None:
            self.tensor, self.version, self.value = t.detach(), version_of(t), None
            value.references -= 1

    def unpack(self):
        value = self.value
        if value is None:
            tensor = self.tensor
            if version_of(tensor) != self.version:
                raise changed(tensor, self.version)
            return tensor
        backward = current_pass()
        with backward.lock, without_torch_function():
            tensor = as_in_forward(backward.tensor_of, value)
            if value.fingerprint is not None:
                recomputed = backward.to_verify(value)
                if recomputed is not None:
                    self.verify(tensor, backward.compare)
                    recomputed.is_verified = True
            backward.release(value)
        return tensor

    def verify(self, tensor, compare):
        """Compare the recomputed tensor, and the original where it still exists, with the fingerprint."""
        value, place, fingerprint_of = self.value, self.place, self.fingerprint_of
        recipe, before = value.recipe, value.fingerprint
        _, _, dtype = recipe.layout
        compare(fingerprint_of(tensor), before, dtype, lambda: mismatch(recipe, place))
        t = value.reference()
        if t is not None and value.reference.is_unchanged(t):
            compare(fingerprint_of(t), before, dtype, lambda: overwritten(recipe, place))


def as_in_forward(tensor_of, value):
    """``tensor_of(value, {})`` without a graph, with version counters, and with no cast but a recipe's own."""
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False):
            return as_in_forward(tensor_of, value)
    if torch.is_grad_enabled():
        with torch.no_grad():
            return as_in_forward(tensor_of, value)
    if not any_autocast():
        return tensor_of(value, {})
    with torch.autocast("cpu", enabled=False):
        if not torch.cuda.is_available():
            return tensor_of(value, {})
        with torch.autocast("cuda", enabled=False):
            return tensor_of(value, {})
