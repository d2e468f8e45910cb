"""Which tensors to save for backward: decided here, apart from the recording of the forward pass."""

import weakref

_NOTHING = frozenset()


class LeastBytes:
    """Saves a tensor or what its recipe needs, whichever adds fewer bytes to what is saved anyway.

    Decided for one tensor at a time, while forward runs, so what comes later in the model is not known.
    """

    def __init__(self):
        # Address of a storage -> a reference to a saved tensor in it. Weak: if a graph is dropped in the middle
        # of forward, what it saved is free, and another tensor may have its address.
        self._saved = {}

    def note_saved(self, value):
        """The tensor of ``value`` is saved: what shares its memory costs nothing more."""
        self._saved[value.storage] = weakref.ref(value.tensor)

    def values_to_save(self, value):
        """What to save so that backward can recompute ``value``; None: save its tensor."""
        needed = self._cheapest_sources(value.recipe, {})
        if needed is None:
            return None
        cost, own_cost = self._bytes(needed), self._bytes((value,))
        if cost != own_cost:
            return needed if cost < own_cost else None
        # At equal cost the recipe is better, if it is that of a view of what is saved, or of a concatenation,
        # whose pieces are part of the next one, too.
        is_better = value.recipe.op == "cat" or any(s.storage == value.storage for s in needed)
        return needed if is_better else None

    def _cheapest(self, value, known):
        """The values to save so that backward can have this one, at the least cost; None if it cannot.

        known: what was found on the way, by value.
        """
        if value in known:
            return known[value]
        if value.is_pinned:
            cheapest = _NOTHING if value.is_available() else None
        else:
            itself = None if value.present() is None else frozenset((value,))
            cheapest = None if value.recipe is None else self._cheapest_sources(value.recipe, known)
            if cheapest is None or (
                itself is not None and self._bytes(itself) < self._bytes(cheapest)
            ):
                cheapest = itself
        known[value] = cheapest
        return cheapest

    def _cheapest_sources(self, recipe, known):
        needed = _NOTHING
        for source in recipe.sources:
            if source.is_pinned:  # nearly always: it needs nothing more
                if not source.is_available():
                    return None
                continue
            found = self._cheapest(source, known)
            if found is None:
                return None
            needed = needed | found if needed else found
        return needed

    def _bytes(self, values):
        """The bytes that saving these values adds, each storage counted once."""
        if not values:
            return 0
        return sum({v.storage: v.nbytes for v in values if not self._is_saved(v.storage)}.values())

    def _is_saved(self, storage):
        reference = self._saved.get(storage)
        return reference is not None and reference() is not None
