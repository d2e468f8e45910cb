"""A converted model's own class: its forward pass is recorded, so that it saves less."""

import functools
import threading
import weakref
from contextlib import contextmanager

import torch

from manualnn.cache import FINGERPRINTS, Recorder, may_record
from manualnn.convert.blame import name_layer
from manualnn.convert.calls import Calls

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


@functools.cache
def sparing(cls: type[torch.nn.Module], verify: object = True) -> type[torch.nn.Module]:
    """``cls`` whose forward is recorded; the same class for the same ``cls``, of the same name."""
    fingerprint_of = FINGERPRINTS[verify]

    @functools.wraps(cls.forward)
    def forward(self, *args, **kwargs):
        run = super(made, self).forward  # it may be a static method, or a property
        if torch.compiler.is_compiling():
            return run(*args, **kwargs)
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
        # A class made here cannot be found by its name: it is made again where it is loaded.
        _, _, *rest = super(made, self).__reduce_ex__(protocol)
        return (_new, (cls, verify), *rest)

    namespace = {"forward": forward, "__reduce_ex__": __reduce_ex__, "__doc__": cls.__doc__}
    namespace |= {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    made = type(cls.__name__, (cls, Sparing), namespace)
    return made


def plain(cls: type) -> type:
    """The class that ``sparing`` was given, or ``cls`` itself."""
    return cls.__bases__[0] if is_sparing(cls) else cls


def is_sparing(cls: type) -> bool:
    return Sparing in cls.__bases__


def _new(cls, verify=True):
    made = sparing(cls, verify)
    return made.__new__(made)
