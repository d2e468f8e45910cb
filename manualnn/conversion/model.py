"""A converted model's own class: its forward pass is recorded, so that it saves less."""

import functools
import threading
import weakref
from contextlib import contextmanager
from typing import Any

import torch

from manualnn.conversion.calls import Calls
from manualnn.conversion.reasons import name_layer
from manualnn.memory import FINGERPRINTS, Recorder, may_record

_observed = threading.local()
# A model -> what its earlier passes have taught a Recorder.
_saved_later = weakref.WeakKeyDictionary()


@contextmanager
def observing(observer):
    """``observer(saved, op)`` is called for every tensor that a recorded model saves, once that is decided."""
    _observed.by = observer
    try:
        yield
    finally:
        _observed.by = None


class Sparing:
    """Marks the class of a model whose forward pass is recorded."""

    def __init_subclass__(cls, **options):
        # The class of the model has been made once; what its author does then is not to be done again.
        if not is_sparing(cls):
            super().__init_subclass__(**options)


@functools.cache
def sparing(cls: type[torch.nn.Module], verify: object = True) -> type[torch.nn.Module]:
    """``cls`` whose forward is recorded; the same class for the same ``cls``, of the same name.

    It stands for ``cls``: nothing of what that does for a subclass is run, and what is set on it is set there.
    """
    fingerprint_of = FINGERPRINTS[verify]

    @functools.wraps(cls.forward)
    def forward(self, *args, **kwargs):
        if torch.compiler.is_compiling():
            return super(made, self).forward(*args, **kwargs)
        # Not by super(): it may be called on a model that has been given its own class back.
        run = _declared(cls, "forward").__get__(self, type(self))
        try:
            if not may_record():
                return run(*args, **kwargs)
            known = _saved_later.setdefault(self, set())
            recorder = Recorder(self, fingerprint_of, known, getattr(_observed, "by", None))
            with recorder.recording():
                with Calls(recorder):
                    result = run(*args, **kwargs)
                recorder.hand_over(result)
                return result
        except Exception as error:
            name_layer(self, error)
            raise

    def __reduce_ex__(self, protocol):
        # A class made here cannot be found by its name: what makes a ``cls`` is kept, and the rest made again.
        factory, arguments, *rest = super(made, self).__reduce_ex__(protocol)
        factory, *arguments = (cls if part is made else part for part in (factory, *arguments))
        return (_made_again, (verify, factory, tuple(arguments)), *rest)

    namespace = {"forward": forward, "__reduce_ex__": __reduce_ex__, "__doc__": cls.__doc__}
    namespace |= {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    # type itself makes it, whatever metaclass it has: that has done its work on ``cls``.
    metaclass: Any = type(cls)
    made: Any = type.__new__(_standing_in(metaclass), cls.__name__, (cls, Sparing), namespace)
    return made


def plain(cls: type) -> type:
    """The class that ``sparing`` was given, or ``cls`` itself."""
    return cls.__bases__[0] if is_sparing(cls) else cls


def is_sparing(cls: type) -> bool:
    return Sparing in cls.__bases__


@functools.cache
def _standing_in(metaclass: Any) -> type:
    """``metaclass`` for a class that stands in for another: what is set on it is set on that one."""

    def __setattr__(cls, name, value):
        setattr(plain(cls), name, value)

    def __delattr__(cls, name):
        delattr(plain(cls), name)

    def mro(cls):
        order = metaclass.mro(cls)
        if is_sparing(cls):  # asked before the class that it stands in for
            order.remove(Sparing)
            order.insert(1, Sparing)
        return order

    namespace = {"__setattr__": __setattr__, "__delattr__": __delattr__, "mro": mro}
    return type.__new__(type, metaclass.__name__, (metaclass,), namespace)


def _declared(cls, name):
    """What stands in the class: a function, a static method, a property."""
    return next(vars(base)[name] for base in cls.__mro__ if name in vars(base))


def _made_again(verify, factory, arguments):
    made = factory(*arguments)
    made.__class__ = sparing(plain(type(made)), verify)
    return made
