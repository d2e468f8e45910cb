"""Which layer of a network puts out the first number that is not finite."""

import contextlib

import torch
from torch import Tensor


@torch.no_grad()
def first_nonfinite_layer(network: torch.nn.Module, images: Tensor) -> str:
    """Runs `images` through the network once more and names the first such layer and its kind.

    Where every layer's output is finite it says so (then the loss itself overflowed).
    """
    if not torch.isfinite(images).all():
        return "the images themselves"
    found: list[str] = []
    with contextlib.ExitStack() as stack:
        for name, module in network.named_modules():
            if not any(module.children()):
                stack.enter_context(_watch(module, name, found))
        network(images)
    return found[0] if found else "none of the layers; the loss itself overflowed"


@contextlib.contextmanager
def _watch(module: torch.nn.Module, name: str, found: list[str]):
    def look(layer, args, output):
        if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
            lost = [n for n, p in layer.named_parameters() if not torch.isfinite(p).all()]
            weights = f", whose {' and '.join(lost)} already were not" if lost else ""
            found.append(f"{name or 'the network'} ({layer}){weights}")

    handle = module.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()
