"""One value between forward and backward: a tensor, or the recipe by which it is recomputed."""

import torch

from manualnn._torch import conj_view, is_alias_of, neg_view, without_dispatch_modes
from manualnn.memory.tensors import TO_RECOMPUTE, changed, stream_of, version_of


class Value:
    """A value between forward and backward: a tensor, or how to recompute it.

    alive             a weak reference to the tensor: one that nobody saves is not kept alive by its value
    as_made, address  its version when it was made, and where it was: a tensor with others is not this value
    tensor, version   the tensor, once recipes may rely on it, and the version at which it is right
    make, sources     its recipe, if it has one: ``make(*values of the sources)``
    over              the same, writing over the value of the first source, if there is such a way
    op, view          the op's name, for the user and for concatenations; whether it is a view of its source
    like              shape, strides and dtype of a value that has a recipe
    number            of its recipe among those of the pass
    fingerprint       of the tensor as it was made; what is recomputed must have the same
    depth             steps from a tensor to this value
    uses              how many recipes this value is a source of
    nbytes, storage   what holding the tensor costs, and where
    kept              whether backward can rely on this value: it is held, or its recipe's sources are
    direct            whether autograd has saved the tensor itself, as torch would
    saved, asked      how many saved tensors refer to it; how many of these and of kept recipes will ask for it
    left              how many of these backward has still to serve
    verified          whether the value that is shared now has been compared with the fingerprint
    shared, owned     the value recomputed in backward while others wait for it; whether its memory is its own
    """

    __slots__ = (
        *("address", "alive", "as_made", "asked", "depth", "direct", "fingerprint", "kept", "left"),
        *("like", "make", "nbytes", "number", "op", "over", "owned", "saved", "shared", "sources"),
        *("storage", "tensor", "uses", "verified", "version", "view"),
    )

    def __init__(self, t, alive):
        storage = t.untyped_storage()
        self.storage, self.nbytes = storage.data_ptr(), storage.nbytes()
        self.alive, self.version, self.tensor = alive, version_of(t), None
        self.as_made, self.address = self.version, t.data_ptr()
        self.make = self.over = self.op = self.fingerprint = self.shared = None
        self.sources = ()
        self.view = self.kept = self.direct = self.owned = self.verified = False
        self.saved = self.asked = self.left = self.depth = self.uses = 0

    def is_value_of(self, t):
        return version_of(t) == self.as_made and t.data_ptr() == self.address

    def hold(self, t, version=None):
        """Become the tensor itself, as it is at its version."""
        self.tensor, self.version = t.detach(), version_of(t) if version is None else version
        self.make, self.sources, self.view, self.depth = None, (), False, 0
        self.fingerprint = None

    def hold_copy(self):
        """Hold a copy of the tensor that is held: the memory of that one is about to change."""
        t = self.tensor
        with without_dispatch_modes():  # a tracer's, around the write, is not to see it
            storage = t.untyped_storage().clone()  # whole, so that views of it are where they were
            copy = t.new_empty(0).set_(storage, t.storage_offset(), t.shape, t.stride())
            copy = conj_view(copy) if t.is_conj() else copy
            self.tensor = neg_view(copy) if t.is_neg() else copy
        self.version = version_of(self.tensor)
        self.storage, self.nbytes, self.as_made = storage.data_ptr(), storage.nbytes(), None

    def set_recipe(self, t, make, sources, op, view=False, over=None):
        """``t`` is ``make(*sources)``."""
        self.like = t.shape, t.stride(), t.dtype
        self.make, self.sources, self.op, self.view = make, sources, op, view
        self.depth, self.over = 1 + max(s.depth for s in sources), over
        for source in sources:
            source.uses += 1

    def present(self):
        """The tensor, if it is still there and as it was."""
        if self.tensor is not None:
            return self.tensor if version_of(self.tensor) == self.version else None
        t = self.alive()
        return t if t is not None and self.is_value_of(t) else None

    def shown(self):
        """The tensor, in the memory that it had when it was made, if that is there; of a view by its source."""
        t = self.alive()
        if t is not None and self.is_value_of(t):
            return t
        source = self.sources[0].shown() if self.view else None
        return None if source is None else self.make(source.detach())

    def usable(self):
        """Whether the value can be had: by its recipe, or because the tensor is as it was."""
        return self.make is not None or self.present() is not None

    def plan(self, costs, known):
        """The values to hold so that this one can be had in backward, those that cost least; or None.

        costs: bytes of holding values. known: plans made on the way, by value.
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

    def expect(self):
        """One more will ask for the value."""
        self.asked += 1
        self.left = self.asked

    def served(self):
        """The last one's visit ends the sharing."""
        self.left -= 1
        if self.left <= 0:
            self.shared, self.left = None, self.asked  # another backward may follow: retain_graph

    def value(self, known):
        """The value, in backward; recomputed at most once for all who ask for it.

        known: the values that were recomputed on the way to the one that is asked for.
        """
        if self.tensor is not None:
            if version_of(self.tensor) != self.version:
                raise changed(self.tensor, self.version, TO_RECOMPUTE)
            return self.tensor
        if self in known:
            return known[self]
        if self.shared is not None:
            value, version, stream = self.shared
            if value._version == version and stream == stream_of(value):
                return value
        values = [source.value(known) for source in self.sources]
        first = self.sources[0]
        if self.over is not None and first.is_scratch(known):
            del known[first]
            value, self.owned = self.over(*values), True
        else:
            value = self.make(*values)
            self.owned = not any(is_alias_of(value, v) for v in values)
        laid_out = alike(value, self.like)
        self.owned, value = self.owned or laid_out is not value, laid_out
        known[self] = value
        self.shared, self.verified = (value, value._version, stream_of(value)), False
        for source in self.sources:
            source.served()
        return value

    def is_verified(self):
        return self.verified and self.shared is not None

    def is_scratch(self, known):
        """Whether the value was recomputed for one purpose, and in memory of its own."""
        return self.owned and self in known and self.uses == 1 and not self.saved


class Constant:
    """A tensor that only recipes hold: statistics, a mask, a copy of what others may change."""

    __slots__ = ("tensor", "uses", "version")
    make = op = None
    sources, kept, depth = (), True, 0

    def __init__(self, t):
        self.tensor, self.version, self.uses = t.detach(), version_of(t), 0

    def usable(self):
        return version_of(self.tensor) == self.version

    def plan(self, costs, known):
        return frozenset() if self.usable() else None

    def value(self, known):
        if version_of(self.tensor) != self.version:
            raise changed(self.tensor, self.version, TO_RECOMPUTE)
        return self.tensor

    def is_scratch(self, known):
        return False

    def expect(self):
        pass

    served = expect


def alike(value, like):
    """The value with the strides that it had: views of it are taken by strides."""
    shape, strides, dtype = like
    if value.shape != shape or value.dtype != dtype:
        raise RuntimeError(
            f"recomputed, a {tuple(shape)} of {dtype} came out as {tuple(value.shape)} of {value.dtype}"
        )
    if value.stride() == strides:
        return value
    return torch.empty_strided(shape, strides, dtype=dtype, device=value.device).copy_(value)
