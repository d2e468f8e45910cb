"""Seeds of all that is random in a run: functions of the run's seed and of where it is."""

import torch


def mixed(*key: int) -> int:
    """64 bits of every number of the key: near keys, such as consecutive batches, give unrelated seeds."""
    # FNV-1a over 64-bit words.
    state = 0xCBF29CE484222325
    for word in key:
        state = (state ^ (word & (2**64 - 1))) * 0x100000001B3 % 2**64
        state ^= state >> 29
    return state


def generator(*key: int) -> torch.Generator:
    """A generator on the CPU, seeded by every number of the key."""
    return torch.Generator().manual_seed(mixed(*key))
