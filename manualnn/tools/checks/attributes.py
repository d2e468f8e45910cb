"""State that a module keeps in plain attributes: a hidden state, a counter of steps.

Each call of a check must begin as the one before, so what two calls after another change is put back before
each. What one call sets, and the next leaves as it is, is left alone: a weight that is made once may be stale.
"""

from typing import Any

import torch

from manualnn.tools.checks.complexes import in_dtype
from manualnn.tools.checks.lines import line
from manualnn.tools.checks.report import NOTE, Line
from manualnn.tools.copies import copied

OF_EVERY_MODULE = frozenset(vars(torch.nn.Module()))
WIDE = (torch.float64, torch.complex128)
ABSENT = object()  # it is the call that makes it
PLAIN = (bool, int, float, complex, str, type(None))


@line("state in attributes")
def state_in_attributes(subject):
    """What a call of a module changes, other than its buffers."""
    if not subject.changes:
        return None
    names = ", ".join(f"`{name}`" for name in subject.changes)
    many = "s" if len(subject.changes) > 1 else ""
    message = f"a call changes the attribute{many} {names}: put back before each call"
    return Line("state in attributes", NOTE, detail=message)


class Attributes:
    """The plain attributes of a module, and of those in it, that its calls change.

    names: of each, with a dot between, ``block.h``.
    """

    def __init__(self, model, call):
        """call: what calls a module that is given; it may raise, and then nothing is known to change."""
        self.values = {}
        try:
            self._find(model, call)
        except Exception:  # the user's code, which may raise anything; the check's lines report it
            self.values = {}

    def _find(self, model, call):
        model, made = copied(model), []
        made.append(_state(model))
        call(model)
        if _same(made[0], _state(model)):
            return
        made.append(_state(model, copy=False))
        copies = _copied(made[1])
        call(model)
        then = _state(model, copy=False)
        for place in {**made[1], **then}:
            before, after = made[1].get(place, ABSENT), then.get(place, ABSENT)
            if not _same_object(before, after) or not _same(copies.get(place, ABSENT), after):
                self.values[place] = made[0].get(place, ABSENT)

    @property
    def names(self):
        return [".".join(filter(None, place)) for place in self.values]

    def put_back(self, model, dtype):
        """The attributes as they were, floating numbers in that dtype."""
        if self.values:
            modules = dict(model.named_modules())
            for (module, name), value in self.values.items():
                its: Any = vars(modules[module])
                if value is ABSENT:
                    its.pop(name, None)
                else:
                    its[name] = _copied(value, dtype)


def _state(model, copy=True):
    """{(module, attribute): value} of what is numbers, tensors, and lists, tuples and dicts of these."""
    found = {
        (module, name): value
        for module, m in model.named_modules()
        for name, value in vars(m).items()
        if name not in OF_EVERY_MODULE and _is_plain(value)
    }
    return _copied(found) if copy else found


def _is_plain(value, depth=4):
    if isinstance(value, torch.nn.Parameter):
        return False
    if type(value) in (list, tuple) and depth:
        return all(_is_plain(part, depth - 1) for part in value)
    if type(value) is dict and depth:
        return all(_is_plain(part, depth - 1) for part in value.values())
    return isinstance(value, (torch.Tensor, *PLAIN))


def _copied(value, dtype=None):
    if isinstance(value, torch.Tensor):
        value = value.detach().clone()
        chosen = value.dtype in WIDE and torch.get_default_dtype() not in WIDE  # a sum, say
        return value if dtype is None or chosen else in_dtype(value, dtype)
    if type(value) in (list, tuple):
        return type(value)(_copied(part, dtype) for part in value)
    if type(value) is dict:
        return {key: _copied(part, dtype) for key, part in value.items()}
    return value


def _same(a, b):
    """Whether they hold the same numbers."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        a, b = a.detach(), b.detach()
        return a.shape == b.shape and a.dtype is b.dtype and bool(((a == b) | (a != a)).all())
    if type(a) is not type(b):
        return False
    if type(a) in (list, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if type(a) is dict:
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return a is b or a == b or a != a


def _same_object(a, b):
    """Whether no tensor in it was made anew."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return a is b
    if type(a) in (list, tuple) and type(b) is type(a):
        return len(a) == len(b) and all(map(_same_object, a, b))
    if type(a) is dict and type(b) is dict:
        return a.keys() == b.keys() and all(_same_object(a[key], b[key]) for key in a)
    return True
