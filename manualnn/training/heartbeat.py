"""How far each process of a run has got, for the others to see: where nobody gets on, one of them hangs."""

import math
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning.pytorch import Callback
from torch.distributed.constants import default_pg_timeout

EACH = 0.1  # seconds between two looks
_SHARED = "MANUALNN_HEARTBEAT"  # in the environment of the processes that the first one starts
_PLACE = struct.Struct(
    "<IHH"
)  # of a process: how often it got on, the last hook, whether it was met before


def _got_on(number: int) -> Callable[..., None]:
    return lambda self, *args: self._write(number)


class Heartbeat(Callback):
    """Each process writes down when it gets from one hook to the next; all can read it.

    One hangs, and the others wait for it, when all of them stay where they are for ten times as long as
    they ever did after the same hook (twice as long as at the first time), and for `HUNG` seconds at least.
    Nothing is said of a hook that is met for the first time, such as the first step with a compiler; of a
    run in which a process waits for a disk; nor where the strategy has a timeout that a person chose.

    It has to be the first of the callbacks: what another does in a hook is counted to that hook.
    """

    seconds = 40.0

    def __init__(self):
        self._memory: mmap.mmap | None = None
        self._rank, self._marks, self._met = 0, 0, set()
        self._seen: list[tuple[int, int, int]] = []  # places at the last look
        self._looks: list[int] = []  # at which a process was where it is
        self._patience: dict[tuple[int, int], float] = {}  # seconds, by process and hook

    @contextmanager
    def shared(self, processes: int) -> Iterator[None]:
        """Within, what this process starts can write in the same memory; elsewhere than on Linux nothing is."""
        if processes < 2 or not hasattr(os, "memfd_create") or _SHARED in os.environ:
            yield
            return
        file = os.memfd_create("heartbeat")
        try:
            os.truncate(file, processes * _PLACE.size)
            os.environ[_SHARED] = f"/proc/{os.getpid()}/fd/{file}"
            yield
        finally:
            os.environ.pop(_SHARED, None)
            os.close(file)

    def setup(self, trainer, pl_module, stage: str) -> None:
        chosen = getattr(trainer.strategy, "_timeout", default_pg_timeout) != default_pg_timeout
        if stage != "fit" or chosen or self._memory or _SHARED not in os.environ:
            return
        self._rank = trainer.local_rank
        with suppress(OSError), open(os.environ[_SHARED], "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)

    on_train_start = _got_on(1)
    on_train_epoch_start = _got_on(2)
    on_train_batch_start = _got_on(3)
    on_train_batch_end = _got_on(4)
    on_train_epoch_end = _got_on(5)
    on_train_end = _got_on(6)
    on_validation_start = _got_on(7)
    on_validation_batch_start = _got_on(8)
    on_validation_batch_end = _got_on(9)
    on_validation_end = _got_on(10)
    on_save_checkpoint = _got_on(11)

    def _write(self, hook: int) -> None:
        if self._memory is not None:
            self._marks += 1
            place = _PLACE.pack(self._marks, hook, hook in self._met)
            self._memory[self._rank * _PLACE.size : (self._rank + 1) * _PLACE.size] = place
            self._met.add(hook)

    def hangs(self, pids: list[int], more: float = 0.0) -> bool:
        """One look, every `EACH` seconds; not by the clock, which goes on while all are stopped.

        Args:
            pids: Of the run's processes.
            more: Seconds to wait for longer.
        """
        if self._memory is None:
            return False
        places = list(_PLACE.iter_unpack(self._memory[:]))
        if not self._seen:
            self._seen, self._looks = places, [0] * len(places)
        for rank, (old, new) in enumerate(zip(self._seen, places, strict=True)):
            if old == new:
                self._looks[rank] += 1
                continue
            _, hook, met = old
            factor = 10 if met else 2
            took = factor * self._looks[rank] * EACH
            self._patience[rank, hook] = max(took, self._patience.get((rank, hook), 0.0))
            self._looks[rank] = 0
        self._seen = places
        if not all(self._is_late(rank, more) for rank in range(len(places))):
            return False
        if any(state(pid) == "D" for known in pids for pid in (known, *_children(known))):
            self._looks = [0] * len(places)
        return any(self._looks)

    def _is_late(self, rank: int, more: float) -> bool:
        marks, hook, met = self._seen[rank]
        usual = self._patience.get((rank, hook), 0.0) if met and marks else math.inf
        return self._looks[rank] * EACH > max(self.seconds, usual) + more


def _children(pid: int) -> list[int]:
    try:
        return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    except OSError:
        return []


def state(pid: int) -> str:
    """R, S, T, ... of a process, where the system tells (Linux)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
