"""A value between forward and backward: a tensor that is saved, or the recipe by which it is recomputed."""

import weakref
from typing import Any

from manualnn._torch import conj_view, neg_view, without_dispatch_modes
from manualnn.memory.tensors import version_of


class TensorReference(weakref.ref):
    """A weak reference to a tensor, which also says how the tensor was when it was recorded.

    key               the tensor's id, under which its value stands in the recorder's table
    version, address  of the tensor at that time; version None: the tensor counts as another one from now on
    """

    __slots__ = ("address", "key", "version")
    address: int
    key: int
    version: int | None

    def is_unchanged(self, t):
        """Whether ``t``, the tensor, still has the version and the memory that it had."""
        try:
            version = t._version
        except RuntimeError:  # an inference tensor: see version_of, which costs a call
            version = -1
        return version == self.version and t.data_ptr() == self.address


class SavedValue:
    """The value of a tensor of a recorded forward pass: the tensor, once it is saved, or its recipe.

    reference        to the tensor; weak, so that a tensor which nothing saves is freed
    storage, nbytes  the memory of the tensor: its address, and what saving it costs
    recipe           how the value is recomputed; None if the tensor itself is needed
    tensor, version  the saved tensor, and the version at which it is right
    is_inside        whether the tensor was seen to be ordinary, and computed in the graph
    is_pinned        whether backward relies on this value: it is saved, or its recipe's sources are pinned
    is_direct        whether autograd itself has saved the tensor, as without ``convert``
    fingerprint      of the tensor as it was made; the recomputed one must have the same

    Reference counts. A BackwardPass counts down a copy of the last:

    recipes          how many recipes have this value as a source
    saves            in place of how many tensors autograd has been given this value
    references       how many of those saves, and of the pinned recipes, ask for it in one backward pass
    """

    __slots__ = (
        *("__weakref__", "fingerprint", "is_direct", "is_inside", "is_pinned", "nbytes", "recipe"),
        *("recipes", "reference", "references", "saves", "storage", "tensor", "version"),
    )

    def __init__(self, t, reference):
        storage = t.untyped_storage()
        self.storage, self.nbytes = storage.data_ptr(), storage.nbytes()
        self.reference = reference
        reference.version = version_of(t)
        reference.address = t.data_ptr()
        self.recipe = self.tensor = self.version = self.fingerprint = None
        self.is_pinned = self.is_direct = self.is_inside = False
        self.recipes = self.saves = self.references = 0

    @property
    def sources(self):
        return () if self.recipe is None else self.recipe.sources

    @property
    def depth(self):
        return 0 if self.recipe is None else self.recipe.depth

    def save(self, t, version):
        """Save the tensor itself, which is right at this version. ``t`` has no history."""
        self.tensor, self.version = t, version
        self.recipe = self.fingerprint = None

    def save_copy(self):
        """Save a copy instead of the tensor, whose memory is about to be overwritten."""
        t: Any = self.tensor
        with without_dispatch_modes():  # a tracer around the write must not see the copy
            storage = t.untyped_storage().clone()  # whole, so that views of it are where they were
            copy = t.new_empty(0).set_(storage, t.storage_offset(), t.shape, t.stride())
            copy = conj_view(copy) if t.is_conj() else copy
            self.tensor = neg_view(copy) if t.is_neg() else copy
        self.version = version_of(self.tensor)
        self.storage, self.nbytes = storage.data_ptr(), storage.nbytes()
        self.disown_tensor()

    def disown_tensor(self):
        """The tensor counts as another one from now on: this is the value that it had until now."""
        self.reference.version = None

    def set_recipe(self, recipe):
        self.recipe = recipe
        for source in recipe.sources:
            source.recipes += 1

    def present(self):
        """The tensor, if it still exists unchanged; else None."""
        if self.tensor is not None:
            return self.tensor if version_of(self.tensor) == self.version else None
        t = self.reference()
        return t if t is not None and self.reference.is_unchanged(t) else None

    def original(self):
        """The tensor in the memory in which it was made, if that still exists; else None. It is not recomputed,
        but a view may be taken of its source once more.
        """
        t = self.reference()
        if t is not None and self.reference.is_unchanged(t):
            return t
        if self.recipe is None or not self.recipe.is_view:
            return None
        source = self.recipe.sources[0].original()
        return None if source is None else self.recipe.recompute(source.detach())

    def is_available(self):
        """Whether backward can have the value: by its recipe, or because the tensor is unchanged."""
        return self.recipe is not None or self.present() is not None


class Constant:
    """A source that only recipes hold: statistics, a mask, a copy of what other code may change."""

    __slots__ = ("recipes", "tensor", "version")
    recipe = None
    sources, depth, is_pinned = (), 0, True

    def __init__(self, t):
        self.tensor, self.version = t.detach(), version_of(t)
        self.recipes = 0

    @property
    def nbytes(self):
        return self.tensor.untyped_storage().nbytes()

    def is_available(self):
        return version_of(self.tensor) == self.version
