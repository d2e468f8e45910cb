"""What kernels need to know of windows, and of tensors that were not saved."""

import torch


def split(numbers, parts):
    """Numbers in as many tuples of equal length."""
    n = len(numbers) // parts
    return tuple([tuple(numbers[i * n : (i + 1) * n]) for i in range(parts)])


def layout_of(t, saved):
    """The shape of a tensor; and its strides, if it is not saved itself."""
    return t.shape, None if saved else t.stride()


def placeholder(t, shape, stride):
    """For a tensor that was not saved: its layout, by which a kernel is chosen, with the dtype of ``t``.

    Nothing of it is read that reaches a gradient asked for, so that its memory is never written either.
    """
    if (t.shape, t.stride()) == (shape, stride):
        return t  # not detached: a batch of gradients knows no rule for that
    return torch.empty_strided(shape, stride, dtype=t.dtype, device=t.device)
