"""What is saved for backward, layer by layer, and what would torch.nn save?

    print(manualnn.ledger(model, images))
    manualnn.ledger(model, images, autocast=torch.bfloat16).largest_batch("24 GiB")

``python -m manualnn ledger torchvision:resnet50 --size 224 --batch 8`` does the same on the command line.
"""

from collections.abc import Iterable
from typing import Any

import torch

from manualnn._torch import tree_iter
from manualnn.conversion import convert, revert
from manualnn.conversion.layers import _OURS
from manualnn.conversion.model import is_memory_saving
from manualnn.tools.copies import copied
from manualnn.tools.ledgers.live import copies
from manualnn.tools.ledgers.record import Entry, Run, record
from manualnn.tools.ledgers.report import Ledger, bytes_of

__all__ = ["Entry", "Ledger", "ledger"]
DTYPES = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
}


def ledger(
    model: torch.nn.Module,
    *inputs: Any,
    autocast: torch.dtype | str | None = None,
    memory: int | float | str | None = None,
    name: str | None = None,
) -> Ledger:
    """What each layer of a model saves for backward, beside what torch.nn would save.

    Two training steps are run, on copies: one of the model as torch.nn would have it, one of the model as
    `convert` makes it; a model that has layers of ours already is measured as it is. The model, its running
    statistics and gradients, the inputs and the random state stay as they are. The loss is the sum of the
    outputs, which saves nothing itself. Parameters, buffers and the model's inputs are there anyway and are
    not counted; a storage that several layers read is counted where it is read first.

    The floor is the least that could be saved so that no matrix product, convolution or attention is done
    twice: the fewest bytes of tensors from which all that torch.nn's backward reads can be recomputed in
    passes over memory, about one tensor for each product. Masks count a bit an element, a max-pooling's
    positions a byte a window.

    Args:
        model: any module, in the mode (training or evaluation) in which it is to be measured.
        inputs: what it is called with. The first tensor's first size is the batch.
        autocast: None, or the dtype of an autocast region: torch.bfloat16, or "bf16".
        memory: bytes, or "24 GiB": the table then ends with the largest batch that fits.
        name: of the model, for the headline; by default its class's.

    Returns:
        Ledger: the table of it, every tensor, and what follows for a larger batch.

    Raises:
        TypeError: ``model`` is not a torch.nn.Module.
        ValueError: ``autocast`` or ``memory`` cannot be read.
        Exception: whatever the model raises on its inputs.

    >>> made = ledger(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU()), torch.ones(2, 4))
    >>> made.total == 2 * 8 * 4  # bytes: z alone, which both layers can do with
    True
    """
    if not isinstance(model, torch.nn.Module):
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"ledger() takes a torch.nn.Module, not {got}")
    dtype = dtype_of(autocast)
    memory = None if memory is None else bytes_of(memory)
    runs = [
        run(twin(model), inputs, dtype, floor) for twin, floor in ((_theirs, True), (ours, False))
    ]
    tensors = [t for t in tree_iter(inputs) if isinstance(t, torch.Tensor)]
    parameters = list(model.parameters())
    return Ledger(
        name or type(model).__name__,
        batch=tensors[0].shape[0] if tensors and tensors[0].ndim else 1,
        autocast=None if dtype is None else str(dtype).removeprefix("torch."),
        torch=runs[0],
        ours=runs[1],
        parameters=size((*parameters, *model.buffers())),
        gradients=size(p for p in parameters if p.requires_grad),
        inputs=size(tensors),
        memory=memory,
    )


def run(
    model: torch.nn.Module, inputs: tuple[Any, ...], autocast: torch.dtype | None, with_floor: bool
) -> Run:
    for parameter in model.parameters():
        parameter.grad = None
    devices = {t.device for t in model.parameters() if t.device.type == "cuda"}
    with torch.random.fork_rng(devices), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        return record(model, copies(inputs), autocast, with_floor)


def _theirs(model: torch.nn.Module) -> torch.nn.Module:
    return revert(copied(model))


def ours(model: torch.nn.Module) -> torch.nn.Module:
    """A model of torch.nn's layers is converted; one with layers of ours is as its owner wants it."""
    twin = copied(model)
    mine = tuple(_OURS.values())
    if any(is_memory_saving(type(m)) or isinstance(m, mine) for m in twin.modules()):
        return twin
    return convert(twin)


def dtype_of(autocast: torch.dtype | str | None) -> torch.dtype | None:
    if autocast is None or isinstance(autocast, torch.dtype):
        return autocast
    if autocast in DTYPES:
        return DTYPES[autocast]
    raise ValueError(f"autocast must be a dtype or one of {', '.join(DTYPES)}, not {autocast!r}")


def size(tensors: Iterable[torch.Tensor]) -> int:
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()
    )
