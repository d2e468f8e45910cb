"""What a tensor is, asked where every microsecond of an op counts."""

import torch


def is_parameter(t):
    # isinstance and issubclass ask torch's metaclasses, which takes longer than all the rest of a cell.
    return torch.nn.Parameter in type(t).__mro__


def is_ordinary(t):
    """A tensor with strides and memory of its own: no subclass, sparse, nested or quantised one."""
    return (
        (type(t) is torch.Tensor or is_parameter(t))
        and t.layout is torch.strided
        and not t.is_nested
        and not t.is_quantized
        and not t.is_meta
    )


def memory_of(t):
    """Where a tensor's storage begins: views of one share it."""
    return t.untyped_storage().data_ptr()
