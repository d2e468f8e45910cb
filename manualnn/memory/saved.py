"""What autograd is given in place of one saved tensor."""

import threading

import torch

from manualnn._torch import any_autocast, without_torch_function
from manualnn.memory.tensors import changed, version_of
from manualnn.memory.verify import compare, mismatch, overwritten

# Of two backward passes through one graph, in two threads: what one recomputes and shares, writing over what it
# no longer needs, the other would read. A thread may come here again from within.
_one_at_a_time = threading.RLock()


class Saved:
    """A tensor, as autograd would hold it, or the value that is recomputed in its place, and verified.

    tensor, version   the tensor and the version at which it was saved; None where it is recomputed
    value             the value, with a recipe, that stands for it; None where the tensor is held
    place             where it was saved, for a message
    fingerprint_of    the function that took the value's fingerprint; None where nothing is verified
    """

    __slots__ = ("fingerprint_of", "place", "tensor", "value", "version")

    def __init__(self, t):
        # A leaf itself, as autograd holds it: who sets its data to another tensor means backward, too.
        self.tensor, self.version = t if t.grad_fn is None else t.detach(), version_of(t)
        self.value = self.place = self.fingerprint_of = None

    def let_go(self, value, place, fingerprint_of):
        """Hold the value's recipe instead."""
        self.value, self.place, self.fingerprint_of = value, place, fingerprint_of
        self.tensor = None

    def take_back(self):
        """Hold the tensor after all, as autograd would have, if it is still the one that was saved."""
        value = self.value
        t = None if value is None else value.shown()
        if t is not None:
            self.tensor, self.version, self.value = t.detach(), version_of(t), None
            value.asked -= 1
            value.left = value.asked

    def unpack(self):
        value = self.value
        if value is None:
            if version_of(self.tensor) != self.version:
                raise changed(self.tensor, self.version)
            return self.tensor
        with _one_at_a_time, without_torch_function():
            found = as_in_forward(value.value)
            if value.fingerprint is not None and not value.is_verified():
                self.verify(value, found)
                value.verified = True
            value.served()
        return found

    def verify(self, value, found):
        take, place = self.fingerprint_of, self.place
        compare(take(found), value.fingerprint, lambda: mismatch(value, place))
        t = value.alive()
        if t is not None and value.is_value_of(t):
            compare(take(t), value.fingerprint, lambda: overwritten(value, place))


def as_in_forward(compute):
    """Without a graph, with versions, and with no cast but those that the recipe holds."""
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False):
            return as_in_forward(compute)
    if torch.is_grad_enabled():
        with torch.no_grad():
            return as_in_forward(compute)
    if not any_autocast():
        return compute({})
    with torch.autocast("cpu", enabled=False):
        if not torch.cuda.is_available():
            return compute({})
        with torch.autocast("cuda", enabled=False):
            return compute({})
