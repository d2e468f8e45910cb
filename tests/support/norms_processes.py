"""What two processes do for a batch norm that looks at both; forked by a server, so it must be importable."""

import torch
import torch.distributed as dist
from regimes_processes import joined

from manualnn import nn
from manualnn.ops.norms import SyncBatchNorm

CHANNELS, EPS = 4, 1e-5
CASES = {
    "halves": ({}, (3, 3)),
    "unequal": ({"momentum": None}, (5, 1)),
    "one of them empty": ({"momentum": 0.3}, (6, 0)),
    "not affine": ({"affine": False}, (2, 4)),
    "no bias, not tracked": ({"bias": False, "track_running_stats": False}, (4, 2)),
}


def batch():
    torch.manual_seed(5)
    x = torch.randn(6, CHANNELS, 3, 2, dtype=torch.float64) * 2 + 1
    return x, torch.randn(x.shape, dtype=torch.float64)


def again(layer, x):
    """Whether the output is made again without a word between the processes."""
    group = dist.group.WORLD
    inputs = (x, layer.weight, layer.bias, None, None, 0.1, EPS, group)
    outputs = SyncBatchNorm._recorded_apply(*inputs)
    if not x.numel():
        return SyncBatchNorm.recompute(inputs, outputs) is None
    make, sources = SyncBatchNorm.recompute(inputs, outputs)
    return torch.equal(make(*sources), outputs[0])


def synchronise(rank, path):
    joined(rank, path)
    found = {}
    for name, (options, split) in CASES.items():
        x, dy = (t.split(split)[rank].contiguous() for t in batch())
        layer = nn.SyncBatchNorm(CHANNELS, **options).double()
        x.requires_grad_()
        for _ in range(2):
            y = layer(x)
        leaves = [x, *layer.parameters()]
        first = torch.autograd.grad(y, leaves, dy, retain_graph=True)
        dx, *dparameters = torch.autograd.grad(y, leaves, dy, create_graph=True)
        for kernel, by_formula in zip(first, (dx, *dparameters), strict=True):
            torch.testing.assert_close(kernel, by_formula, rtol=1e-11, atol=1e-11)
        (second,) = torch.autograd.grad((dx * dy).sum(), x)
        found[name] = {
            "y": y.detach(),
            "dx": first[0],
            "dparameters": list(first[1:]),
            "second": second,
            "buffers": [b.clone() for b in layer.buffers()],
            "again": again(layer, x.detach().requires_grad_()),
            "eval is batch_norm": torch.equal(
                layer.eval()(batch()[0]),
                torch.nn.BatchNorm2d.forward(layer, batch()[0]),
            ),
        }
    torch.save(found, f"{path}/{rank}.pt")
    dist.destroy_process_group()
