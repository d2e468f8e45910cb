"""Recipes that follow one another element by element, recomputed as one kernel."""

from collections.abc import Callable
from typing import Any

from manualnn.autograd.blockwise import Elementwise
from manualnn.kernels import running
from manualnn.kernels.chains import BY_CHANNEL, EACH, Link


def chain_of(value: Any, is_needed_once: Callable[[Any], bool]) -> tuple[Link, list[Any]] | None:
    """The link that computes a value, and what it is computed from; None if there is nothing to join.

    Args:
        is_needed_once: of a source, whether only this chain asks for it, so that it need not exist.
    """
    recipe = value.recipe
    if type(recipe.recompute) is not Elementwise or recipe.layout[0].numel() < running.LEAST:
        return None  # or of so few elements that no kernel would run: its tensors are of this shape
    sources: list[Any] = []
    link = _link(recipe, sources, is_needed_once)
    joined = BY_CHANNEL in link.given or any(type(g) is Link for g in link.given)
    return (link, sources) if joined else None


def _link(recipe, sources, is_needed_once):
    formula, given = recipe.recompute, []
    full = len(recipe.sources) - formula.by_channel
    for i, source in enumerate(recipe.sources):
        within = source.recipe
        if i >= full:
            given.append(BY_CHANNEL)
            sources.append(source)
        elif (
            within is not None
            and type(within.recompute) is Elementwise
            and within.layout == recipe.layout
            and is_needed_once(source)
        ):
            given.append(_link(within, sources, is_needed_once))
        else:
            given.append(EACH)
            sources.append(source)
    return Link(formula.function, tuple(given), formula.options, repr(formula.options))
