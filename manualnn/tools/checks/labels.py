"""Integers and masks that are passed on: which they are, and which of them are labels."""

import torch


def passed_along(subject):
    """The integers and bools that are passed on, in the order in which ``alongside`` meets them."""
    found = []

    def keep(t):
        found.append(t)
        return t

    if subject.alongside is not None:
        subject.alongside(keep)
    return found


def read_by(t, inputs):
    """Of labels, (the input, its dimension) that has the classes: all other sizes are theirs; else None."""
    if t.dtype is torch.bool:
        return None
    for i, x in enumerate(inputs):
        for dim in (1, x.dim() - 1):
            if x.dim() == t.dim() + 1 and (*x.shape[:dim], *x.shape[dim + 1 :]) == t.shape:
                if t.max() < x.shape[dim]:
                    return i, dim
    return None


def places(subject):
    """Whether integers or masks are passed on that are no labels: they may say where."""
    return any(read_by(t, subject.inputs) is None for t in passed_along(subject))
