"""One value between forward and backward: a tensor, or its origin, and what is made from it in backward."""

import torch

from manualnn.cache.staleness import changed, stream_of, version_of
from manualnn.cache.tensors import is_parameter


class Cell:
    """A value between forward and backward: a tensor, or how to make it.

    tensor, version   the tensor, once it is kept, and the version at which it is right; until then only
    alive             a weak reference to it: what nobody keeps is not kept alive by its cell
    as_made, address  its version when it was made, and where it was: a tensor with others is not its value
    make, sources     its origin, if it has one: ``make(*values of the source cells)``
    over              the same, writing over the value of the first source, if there is such a way
    origin, view      the op's name, for people and for concatenations; whether it only looks at its source
    depth             steps from a tensor to this value
    uses              how many origins this cell is a source of
    like              shape, strides and dtype of a value that has an origin
    nbytes, storage   what keeping the tensor costs, and where
    kept              whether somebody relies on this cell
    direct            whether autograd has saved the tensor itself, as torch would
    saved, asked      how many saved tensors refer to it; how many of these and of kept origins will ask for it
    left              how many of these backward has still to serve
    remade, owned     the value made in backward while others wait for it; whether its memory is its own
    """

    __slots__ = (
        "address",
        "alive",
        "as_made",
        "asked",
        "depth",
        "direct",
        "kept",
        "left",
        "like",
        "make",
        "nbytes",
        "origin",
        "over",
        "owned",
        "remade",
        "saved",
        "sources",
        "storage",
        "tensor",
        "uses",
        "version",
        "view",
    )

    def __init__(self, t, alive):
        storage = t.untyped_storage()
        self.storage, self.nbytes = storage.data_ptr(), storage.nbytes()
        self.alive, self.version, self.tensor = alive, version_of(t), None
        self.as_made, self.address = self.version, t.data_ptr()
        self.make, self.over, self.sources, self.origin, self.view = None, None, (), None, False
        self.kept = self.direct = self.owned = False
        self.saved = self.asked = self.left = self.depth = self.uses = 0
        self.remade = None
        if is_parameter(t):  # alive anyway
            self.hold(t)
            self.kept = True

    def is_value_of(self, t):
        return version_of(t) == self.as_made and t.data_ptr() == self.address

    def hold(self, t):
        """Become the tensor itself."""
        self.tensor, self.version = t.detach(), version_of(t)
        self.make, self.sources, self.view, self.depth = None, (), False, 0

    def made(self, t, make, sources, origin, view, over):
        """Become an origin, of ``t``."""
        self.like = t.shape, t.stride(), t.dtype
        self.make, self.sources, self.origin, self.view = make, sources, origin, view
        self.depth, self.over = 1 + max(s.depth for s in sources), over
        for source in sources:
            source.uses += 1

    def present(self):
        """The tensor, if it is still there and as it was."""
        if self.tensor is not None:
            return self.tensor if version_of(self.tensor) == self.version else None
        t = self.alive()
        return t if t is not None and self.is_value_of(t) else None

    def usable(self):
        """Whether the value can be had: from its origin, or because the tensor is as it was."""
        return self.make is not None or self.present() is not None

    def plan(self, costs, known):
        """The cells to hold so that this value can be had in backward, those that cost least; or None.

        costs: bytes of holding a cell. known: plans made on the way, by cell.
        """
        if self in known:
            return known[self]
        if self.kept:
            plan = frozenset() if self.usable() else None
        else:
            own = None if self.present() is None else frozenset((self,))
            plan = self.plan_of_sources(costs, known) if self.make is not None else None
            if plan is None or (own is not None and costs(own) < costs(plan)):
                plan = own
        known[self] = plan
        return plan

    def plan_of_sources(self, costs, known):
        plans = [source.plan(costs, known) for source in self.sources]
        return None if None in plans else frozenset().union(*plans)

    def keep(self):
        """Rely on this cell, and on all that it is made of."""
        if not self.kept:
            self.kept = True
            for source in self.sources:
                source.expect()
                source.keep()

    def expect(self):
        """One more will ask for the value."""
        self.asked += 1
        self.left = self.asked

    def served(self):
        """The last one's visit ends the sharing."""
        self.left -= 1
        if self.left <= 0:
            self.remade, self.left = None, self.asked  # another backward may follow: retain_graph

    def value(self, known):
        """The value, in backward; made at most once for all who ask for it.

        known: the values that were made on the way to the one that is asked for, by cell.
        """
        if self.tensor is not None:
            if version_of(self.tensor) != self.version:
                raise changed(self.tensor, self.version)
            return self.tensor
        if self in known:
            return known[self]
        if self.remade is not None:
            value, version, stream = self.remade
            if value._version == version and stream == stream_of(value):
                return value
        values = [source.value(known) for source in self.sources]
        first = self.sources[0]
        if self.over is not None and first.is_scratch(known):
            del known[first]
            value, self.owned = self.over(*values), True
        else:
            value = self.make(*values)
            self.owned = not any(torch._C._is_alias_of(value, v) for v in values)
        copied = alike(value, self.like)
        self.owned, value = self.owned or copied is not value, copied
        known[self] = value
        self.remade = (value, value._version, stream_of(value))
        for source in self.sources:
            source.served()
        return value

    def is_scratch(self, known):
        """Whether the value was made for one purpose, and in memory of its own."""
        return self.owned and self in known and self.uses == 1 and not self.saved

    def unpack(self):
        """The value for one of those who have saved it."""
        value = self.value(None) if self.tensor is not None else as_in_forward(self.value)
        self.served()
        return value


class Plain:
    """A tensor that is kept as it is: a parameter, or a vector, of statistics say. A cell without a choice."""

    __slots__ = ("direct", "tensor", "uses", "version")
    make = origin = None
    sources, kept, depth = (), True, 0

    def __init__(self, t):
        self.tensor, self.version, self.uses = t.detach(), version_of(t), 0

    def usable(self):
        return version_of(self.tensor) == self.version

    def plan(self, costs, known):
        return frozenset() if self.usable() else None

    def unpack(self):
        if version_of(self.tensor) != self.version:
            raise changed(self.tensor, self.version)
        return self.tensor

    def value(self, known):
        return self.unpack()

    def is_scratch(self, known):
        return False

    def expect(self):
        pass

    served = keep = expect


def alike(value, like):
    """The value with the strides that it had: views of it are taken by strides."""
    shape, strides, dtype = like
    if value.shape != shape or value.dtype != dtype:
        raise RuntimeError(
            f"made again, a {tuple(shape)} of {dtype} came out as {tuple(value.shape)} of {value.dtype}"
        )
    if value.stride() == strides:
        return value
    return torch.empty_strided(shape, strides, dtype=dtype, device=value.device).copy_(value)


def as_in_forward(make):
    """Without a graph, and with no cast but those that the origin holds."""
    if torch.is_grad_enabled():
        with torch.no_grad():
            return as_in_forward(make)
    if not torch._C._is_any_autocast_enabled():
        return make({})
    with torch.autocast("cpu", enabled=False):
        if not torch.cuda.is_available():
            return make({})
        with torch.autocast("cuda", enabled=False):
            return make({})
