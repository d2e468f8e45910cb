"""Equal to the last bit: what the tests of single families compare with."""

import torch


def normal(*shape, dtype=torch.float32, grad=True):
    return torch.randn(*shape, dtype=dtype).requires_grad_(grad)


def results(function, tensors, options=None):
    """What comes out, then the gradients of all leaves that need one; None where none arrives."""
    leaves = [t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]
    torch.manual_seed(1)
    out = function(*leaves, **(options or {}))
    outs = [t for t in out if t is not None] if isinstance(out, tuple) else [out]
    torch.manual_seed(2)
    loss = sum((t * torch.randn(t.shape, dtype=t.dtype)).sum() for t in outs)
    wrt = [t for t in leaves if t.requires_grad]
    wrt += list(function.parameters()) if isinstance(function, torch.nn.Module) else []
    return [t.detach() for t in outs], torch.autograd.grad(loss, wrt, allow_unused=True)


def assert_same_bits(ours, theirs):
    for mine, other in zip((*ours[0], *ours[1]), (*theirs[0], *theirs[1]), strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            assert mine.dtype == other.dtype
            assert torch.equal(mine.isnan(), other.isnan())
            assert torch.equal(mine.nan_to_num(), other.nan_to_num())


def kept(function, tensors):
    """Bytes that the graph keeps, each storage once."""
    storages = {}

    def note(t):
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        out = function(*tensors)
    return sum(storages.values()), out
