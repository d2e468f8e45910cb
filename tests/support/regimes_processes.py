"""What two processes do; the tests start them from a server that forks, so it must be importable."""

import functools
import os
import sys
import time
from datetime import timedelta
from multiprocessing import forkserver

import pytest
import torch
import torch.distributed as dist
from regimes_cases import blocks, incoming, network
from torch import multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from manualnn import nn

# Processes; seconds until a wait for the other is given up (a start takes 40 on a busy machine).
WORLD, WAIT = 2, 180


@functools.cache
def server():
    """Starts the process that forks the others; it has imported torch and the layers, which costs seconds."""
    multiprocessing.set_forkserver_preload(["regimes_processes", "norms_processes"])
    with pytest.MonkeyPatch.context() as patch:  # what it is told of sys.path it passes over
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()


def together(work, path, *args, wait=WAIT):
    """Runs ``work(rank, path, *args)`` in two processes, and ends both, whatever happens, in time."""
    server()
    given = {"nprocs": WORLD, "join": False, "start_method": "forkserver"}
    context = multiprocessing.start_processes(work, (str(path), *args), **given)
    end = time.monotonic() + wait
    try:
        while not context.join(timeout=1):
            if time.monotonic() > end:
                raise TimeoutError(f"two processes did not end within {wait} s")
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
            process.join()


def joined(rank, path):
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{path}/store",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=WAIT / 2),
    )


MODELS = {
    "MLP": lambda: network([6, 5, 4, 3], "Tanh").pair(),
    "MLP, gelu": lambda: network([6, 5, 3], "GELU").pair(),
    "Sequential": lambda: blocks(p=0.0),
}


def batch(seed=11):
    torch.manual_seed(seed)
    return torch.randn(8, 6, dtype=torch.float64)


def loss(out):
    return out.mul(out.detach().cos()).mean()


def half(x, rank):
    return x[4 * rank : 4 * rank + 4]


def full(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gradients(model):
    return [full(p.grad).detach().clone() for p in model.parameters()]


def distribute(rank, path):
    """Every way of training a model in two processes; rank 0 writes the gradients down."""
    joined(rank, path)
    found, x = {}, batch()
    mesh = init_device_mesh("cpu", (WORLD,))
    for name, build in MODELS.items():
        model = DistributedDataParallel(build()[0])
        loss(model(half(x, rank))).backward()
        found[name, "ddp"] = gradients(model)

        model = DistributedDataParallel(build()[0])
        mine = half(x, rank)
        with model.no_sync():
            (loss(model(mine[:2])) / 2).backward()
        alone = gradients(model)
        (loss(model(mine[2:])) / 2).backward()
        found[name, "ddp, accumulated"] = gradients(model)
        assert not all(
            torch.equal(a, b) for a, b in zip(alone, found[name, "ddp, accumulated"], strict=True)
        )

        model = DistributedDataParallel(build()[0], static_graph=True, gradient_as_bucket_view=True)
        for _ in range(2):
            model.zero_grad()
            loss(model(half(x, rank))).backward()
        found[name, "ddp, static graph"] = gradients(model)

        for layers in (False, True):
            model = build()[0]
            for layer in model if layers else ():
                if any(True for _ in layer.parameters()):
                    fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
            out = model(half(x, rank))
            loss(out).backward()
            found[name, "fully_shard, each layer" if layers else "fully_shard"] = gradients(model)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            optimizer.step()
            key = "step, each layer" if layers else "step"
            found[name, key] = [full(p).detach().clone() for p in model.parameters()]
    dist.barrier()
    if rank == 0:
        torch.save(found, f"{path}/found.pt")
    dist.destroy_process_group()


def one_fails(rank, path):
    """Rank 1 fails while rank 0 waits for it."""
    joined(rank, path)
    model = DistributedDataParallel(nn.Linear(6, 3).double())
    out = model(half(batch(), rank))
    if rank == 1:
        raise ValueError("rank 1 fails on purpose")
    loss(out).backward()


def never_ends(rank, path):
    time.sleep(600)


def compute(modules, tensors, answers):
    """Gradients of modules that came from another process."""
    torch.set_num_threads(1)
    for module, given in zip(modules, tensors, strict=True):
        x, *rest = given
        x = x.clone().requires_grad_()
        torch.manual_seed(7)
        out = module(x, *rest)
        grads = torch.autograd.grad(out, [x, *module.parameters()], incoming(out))
        answers.put([t.detach().numpy() for t in (out, *grads)])
