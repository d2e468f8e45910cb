"""What a process holds between two batches beside weights and states; a checkpoint has it of each process."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer


def taken(trainer: Trainer, model: LightningModule) -> list[dict[str, Any]]:
    """Each process's, by rank: its generators' states, the gradients gathered so far, the running figures."""
    own = {
        "random": _random_states(),
        "gradients": _gradients(trainer, model),
        "running": model.running_state(),
    }
    if trainer.world_size == 1:
        return [own]
    found: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(found, own)
    return found


def put_back(states: list[dict[str, Any]], trainer: Trainer, model: LightningModule) -> bool:
    """Gives this process what it held; False, and nothing, of a run in another number of processes."""
    if len(states) != trainer.world_size:
        return False
    own = states[trainer.global_rank]
    _set_random_states(own["random"])
    model.load_running_state(own["running"])
    gradients = own["gradients"]
    for name, parameter in model.named_parameters():
        if name in gradients:
            parameter.grad = gradients[name].to(parameter.device)
    return True


def _gradients(trainer: Trainer, model: LightningModule) -> dict[str, torch.Tensor]:
    """Those of a step that is gathered over several batches and not yet taken."""
    if not trainer.fit_loop.epoch_loop._should_accumulate():
        return {}
    named = model.named_parameters()
    return {name: p.grad.detach().cpu() for name, p in named if p.grad is not None}


def _random_states() -> dict[str, Any]:
    """Of Python, NumPy, PyTorch and its devices; as tensors and plain values, which load without code."""
    version, words, gauss = random.getstate()
    _, keys, *rest = np.random.get_state()
    states = {
        "python": [version, torch.tensor(words), gauss],
        "numpy": [torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_states(states: dict[str, Any]) -> None:
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    keys, *rest = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"].cpu())
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())
