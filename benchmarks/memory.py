"""Memory of a training step of torchvision's models: held for backward, and at most.

python benchmarks/memory.py [--models resnet50,vit_b_16] [--precision fp32,bf16] [--compile] [--save]

held   bytes that are alive between forward and backward, when only the loss is referenced: beside parameters,
       buffers and the images. On a GPU as the allocator counts; on a CPU every storage that an op has made
       and that is still alive; of a compiled model, inside which nobody sees, every tensor that its graph
       has saved.
peak   the most that is alive in a step, counted likewise, without gradients of parameters on a CPU. A compiled
       model's on a CPU is not known so.
rss    by how much a step makes the process grow at most, as the system counts, on a CPU; gradients and the
       kernels' own workspaces included. Each contestant is measured in a process of its own, after two steps.

Below, in float32 and float64: how many parameters' gradients differ from torch.nn's in any bit; the norm of all
differences over that of all gradients; the largest difference in a parameter over the largest element of its
gradient (near 1 where that is nothing but rounding, as of a bias before a norm). The loss is cross_entropy.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import math
import pathlib
import subprocess
import sys

import torch
import vision
from timing import merge
from torch.utils._pytree import tree_iter

from manualnn.tools.ledgers.live import Live, given, measure, storage_of
from manualnn.tools.ledgers.record import record

MIB = 2**20


class Loss(torch.nn.Module):
    """A model whose output is the loss."""

    def __init__(self, task):
        super().__init__()
        self.model, self.y = task.model, task.y

    def forward(self, x):
        return torch.nn.functional.cross_entropy(self.model(x), self.y)


def measured(kind, task):
    """What one contestant holds; for torch.nn the floor as well."""
    task()
    task()
    for p in task.parameters:
        p.grad = None
    gc.collect()
    if kind == vision.COMPILE:
        found = of_compiled(task)
    else:
        model = Loss(task)
        step = measure(
            model, task.x, autocast=task.autocast, live=Live(given(model, (task.x, task.y)))
        )
        found = {"held": step.retained, "peak": step.peak}
        if kind == vision.THEIRS:
            found["floor"] = floor(model, task)
    if task.device.type == "cpu":
        for p in task.parameters:
            p.grad = None
        gc.collect()
        found["rss"] = growth(task)
    return found


def floor(model, task):
    for p in task.parameters:
        p.grad = None
    return record(model, (task.x,), task.autocast, with_floor=True).floor


def of_compiled(task):
    if task.device.type == "cuda":
        cuda = torch.cuda
        cuda.reset_peak_memory_stats()
        before = cuda.memory_allocated()
        loss = task.forward()
        held = cuda.memory_allocated() - before
        loss.backward()
        return {"held": held, "peak": cuda.max_memory_allocated() - before}
    loss = task.forward()
    there = {storage_of(t)._cdata for t in given(task.model, (task.x, task.y))}
    kept = {storage_of(t)._cdata: storage_of(t).nbytes() for t in saved(loss.grad_fn)}
    held = sum(size for key, size in kept.items() if key not in there)
    loss.backward()
    return {"held": held, "peak": None}


def saved(node):
    """All tensors that the graph behind a node has saved."""
    seen, waiting, found = set(), [node], []
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting.extend(n for n, _ in node.next_functions)
        names = [n for n in dir(node) if n.startswith("_saved_") or n == "saved_tensors"]
        values = [getattr(node, name) for name in names]
        values.extend(getattr(node, "__dict__", {}).values())  # beside those that are checked
        found.extend(t for t in tree_iter(values) if isinstance(t, torch.Tensor))
    return found


def growth(task):
    """Bytes by which the process grows at most in a step."""
    with contextlib.suppress(
        OSError, AttributeError
    ):  # glibc: what is free goes back to the system
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text(
        "5"
    )  # the high-water mark is the present level
    before = status("VmRSS")
    task()
    return status("VmHWM") - before


def status(name):
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def gradients(name, device, size, batch=2):
    """How far ours are from torch.nn's, without autocast; on a CPU with the same threads."""
    found = {}
    for precision, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        tasks = [
            vision.Task(name, kind, "fp32", batch, size, device, dtype)
            for kind in (vision.THEIRS, vision.OURS)
        ]
        for task in tasks:
            task()
        pairs = [(a.grad, b.grad) for a, b in zip(*(t.parameters for t in tasks), strict=True)]
        errors = [
            ((a - b).abs().max() / a.abs().max()).item() for a, b in pairs if a.abs().max() > 0
        ]
        differing = sum(not torch.equal(a, b) for a, b in pairs)
        off, norm = (
            math.sqrt(sum(t.double().square().sum().item() for t in ts))
            for ts in ([a - b for a, b in pairs], [a for a, _ in pairs])
        )
        found[precision] = {"error": off / norm, "largest": max(errors)}
        found[precision] |= {"differing": differing, "of": len(pairs)}
    return found


def alone(found):
    """What the process below prints: one contestant, measured."""
    if found.one == "gradients":
        result = gradients(found.models[0], found.device, found.size)
    else:
        batch, (precision,) = found.batch, found.precision
        task = vision.Task(found.models[0], found.one, precision, batch, found.size, found.device)
        result = measured(found.one, task)
    print(json.dumps(result))


def in_a_process(name, kind, precision, found):
    command = [sys.executable, __file__, "--one", kind, "--models", name, "--precision", precision]
    command += ["--size", str(found.size), "--batch", str(found.batch), "--device", found.device]
    # What is freed goes back to the system at once, or it would be no growth the next time.
    environment = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
    run = subprocess.run(
        command, capture_output=True, text=True, env=vision.environment(environment)
    )
    if run.returncode:
        raise SystemExit(f"{name}, {kind}, {precision}:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def row(name, precision, found, exact):
    kinds = vision.contestants(found)
    of = {kind: in_a_process(name, kind, precision, found) for kind in kinds}
    made = {"model": name, "precision": precision, "device": found.device, "size": found.size}
    made |= {"batch": found.batch, "contestants": of, "gradients": exact}
    if found.largest:
        made["largest_batch"] = {
            kind: vision.largest_batch(vision.fits(name, kind, precision, found.size))
            for kind in kinds
        }
    return made | {"machine": vision.where(found.device)}


def show(made):
    theirs = made["contestants"][vision.THEIRS]
    print(f"{made['model']}, {made['precision']}, batch {made['batch']}")
    print(
        f"{'':16}{'held MiB':>10}{'ratio':>7}{'peak MiB':>10}{'ratio':>7}{'rss MiB':>10}{'ratio':>7}"
    )
    for kind, of in made["contestants"].items():
        cells = []
        for figure in ("held", "peak", "rss"):
            size, base = of.get(figure), theirs.get(figure)
            cells.append(f"{size / MIB:10.1f}{size / base:7.2f}" if size else " " * 17)
        print(f"{kind:16}" + "".join(cells))
    ours = made["contestants"][vision.OURS]["held"]
    print(
        f"{'floor':16}{theirs['floor'] / MIB:10.1f}{theirs['floor'] / theirs['held']:7.2f}", end=""
    )
    print(f"    ours is {ours / theirs['floor']:.2f} of it")
    for dtype, of in made["gradients"].items():
        told = f"{of['differing']} of {of['of']} differ, by {of['error']:.1e}, in one {of['largest']:.1e}"
        print(
            f"gradients in {dtype}: {told if of['differing'] else 'all the same to the last bit'}"
        )
    for kind, batch in made.get("largest_batch", {}).items():
        print(f"largest batch, {kind}: {batch}")
    print(flush=True)


def main():
    parser = vision.parser_of(__doc__)
    vision.arguments(parser)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--largest", action="store_true", help="on a GPU: the largest batch that fits"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    found = vision.parsed(parser)
    if found.largest and found.device != "cuda":
        parser.error("--largest fills a GPU's memory; there is none here")
    if found.one:
        alone(found)
        return
    rows = []
    for name in found.models:
        exact = in_a_process(name, "gradients", "fp32", found)
        for precision in found.precision:
            rows.append(row(name, precision, found, exact))
            show(rows[-1])
            if found.save:
                merge("memory", rows, ("model", "precision", "device", "size"))
    for precision in found.precision:
        of = [r["contestants"] for r in rows if r["precision"] == precision]
        for kind in vision.contestants(found)[1:]:
            mean = math.exp(
                sum(math.log(o[kind]["held"] / o[vision.THEIRS]["held"]) for o in of) / len(of)
            )
            print(f"held, {precision}, geometric mean over {len(of)} models, {kind}: {mean:.3f}")


if __name__ == "__main__":
    main()
