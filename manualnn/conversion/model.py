"""The class of a converted model: it records the model's forward pass, so that less is saved for backward."""

import functools
import threading
import weakref
from contextlib import contextmanager
from typing import Any

import torch

from manualnn.conversion.calls import Calls
from manualnn.conversion.reasons import name_layer
from manualnn.memory import FINGERPRINTS, Recorder, may_record

_observers = threading.local()
# A model -> the numbers of the recipes whose tensors earlier passes have saved later: see Recorder.
_saved_later = weakref.WeakKeyDictionary()


@contextmanager
def observing(observer):
    """Call ``observer(packed, op)`` for each tensor that a recorded model saves, once that is decided."""
    before = getattr(_observers, "current", None)
    _observers.current = observer
    try:
        yield
    finally:
        _observers.current = before


class MemorySaving:
    """Marks the class of a model whose forward pass is recorded."""

    def __init_subclass__(cls, **options):
        # What the author of the model's class does for a subclass is not done for this one, which stands for
        # it.
        if not is_memory_saving(cls):
            super().__init_subclass__(**options)


@functools.cache
def memory_saving(cls: type[torch.nn.Module], verify: object = True) -> type[torch.nn.Module]:
    """A subclass of ``cls``, of the same name, whose forward is recorded; always the same one for a ``cls``.

    It stands for ``cls``: what ``cls`` does for a subclass is not run, and what is set on it is set on ``cls``.
    """
    fingerprint_of = FINGERPRINTS[verify]

    @functools.wraps(cls.forward)
    def forward(self, *args, **kwargs):
        if torch.compiler.is_compiling():
            return super(made, self).forward(*args, **kwargs)
        # Not by super(): it may be called on a model that has its original class again.
        run = _declared(cls, "forward").__get__(self, type(self))
        try:
            if not may_record():
                return run(*args, **kwargs)
            numbers = _saved_later.setdefault(self, set())
            recorder = Recorder(self, fingerprint_of, numbers, getattr(_observers, "current", None))
            with recorder.recording():
                with Calls(recorder):
                    result = run(*args, **kwargs)
                recorder.before_return(result)
                return result
        except Exception as error:
            name_layer(self, error)
            raise

    def __reduce_ex__(self, protocol):
        # This class cannot be found by its name: a ``cls`` is pickled, and is given this class when it is
        # loaded.
        factory, arguments, *rest = super(made, self).__reduce_ex__(protocol)
        factory, *arguments = (cls if part is made else part for part in (factory, *arguments))
        return (_unpickled, (verify, factory, tuple(arguments)), *rest)

    namespace = {"forward": forward, "__reduce_ex__": __reduce_ex__, "__doc__": cls.__doc__}
    namespace |= {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    # type itself makes the class, not its metaclass, which has done its work on ``cls``.
    metaclass: Any = type(cls)
    made: Any = type.__new__(_metaclass(metaclass), cls.__name__, (cls, MemorySaving), namespace)
    return made


def original_class(cls: type) -> type:
    """The class that ``memory_saving`` was given, or ``cls`` itself."""
    return cls.__bases__[0] if is_memory_saving(cls) else cls


def is_memory_saving(cls: type) -> bool:
    return MemorySaving in cls.__bases__


@functools.cache
def _metaclass(metaclass: Any) -> type:
    """``metaclass`` for a memory-saving class: what is set on that is set on its original class."""

    def __setattr__(cls, name, value):
        setattr(original_class(cls), name, value)

    def __delattr__(cls, name):
        delattr(original_class(cls), name)

    def mro(cls):
        order = metaclass.mro(cls)
        if is_memory_saving(cls):  # then the mark comes before the original class
            order.remove(MemorySaving)
            order.insert(1, MemorySaving)
        return order

    namespace = {"__setattr__": __setattr__, "__delattr__": __delattr__, "mro": mro}
    return type.__new__(type, metaclass.__name__, (metaclass,), namespace)


def _declared(cls, name):
    """The attribute as the class declares it: a function, a static method, a property."""
    return next(vars(base)[name] for base in cls.__mro__ if name in vars(base))


def _unpickled(verify, factory, arguments):
    model = factory(*arguments)
    model.__class__ = memory_saving(original_class(type(model)), verify)
    return model
