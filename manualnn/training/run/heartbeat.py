"""How far each process of a run has got, for the others to see: where no one gets on, one of them hangs."""

import math
import mmap
import os
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning.pytorch import Callback
from torch.distributed.constants import default_pg_timeout

EACH = 0.1  # seconds between two looks
IDLE = 8.0  # seconds, of which a process works for less than a twentieth
_SHARED = "MANUALNN_HEARTBEAT"  # in the environment of the processes that the first one starts
# Of a process: its number, how often it got on, the last hook, whether it was met before.
_PLACE = struct.Struct("<IIHH")
_STEPS = (3, 8)  # within a training step, or a step of the validation


def _got_on(number: int) -> Callable[..., None]:
    return lambda self, *args: self._write(number)


class Heartbeat(Callback):
    """Each process writes down when it gets from one hook to the next; all can read it.

    One hangs, and the others wait for it, when all of them stay where they are for ten times as long as
    they ever did after the same hook (twice as long as at the first time), and for `seconds` at least.
    Of those that are not within a step it is asked besides that they do not work: a callback may take its time.
    Nothing is said of a hook that is met for the first time; of a run in which a process compiles, or waits
    for a disk; nor where the strategy has a timeout that the user chose.

    It has to be the first of the callbacks: what another does in a hook is counted to that hook.
    """

    seconds = 35.0

    def __init__(self):
        self._memory: mmap.mmap | None = None
        self._rank, self._marks, self._hook, self._met = 0, 0, 0, set()
        self._seen: list[tuple[int, int, int, int]] = []  # places at the last look
        self._looks: list[int] = []  # at which a process was where it is
        self._patience: dict[tuple[int, int], float] = {}  # seconds, by process and hook
        # Since all are late: the processor seconds of each from look to look, and of all below it at the last.
        self._worked: list[list[float]] = []
        self._trees: list[dict[int, float]] = []

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
            self._marks, self._hook = self._marks + 1, hook
            place = _PLACE.pack(os.getpid(), self._marks, hook, hook in self._met)
            self._memory[self._rank * _PLACE.size : (self._rank + 1) * _PLACE.size] = place
            self._met.add(hook)

    def hangs(self, more: float = 0.0) -> bool:
        """One look, every `EACH` seconds; not by the clock, which goes on while all are stopped.

        Args:
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
            _, _, hook, met = old
            factor = 10 if met else 2
            took = factor * self._looks[rank] * EACH
            self._patience[rank, hook] = max(took, self._patience.get((rank, hook), 0.0))
            self._looks[rank] = 0
        self._seen = places
        if self._looks[self._rank] * EACH > self.seconds / 2 and _compiles():
            self._write(self._hook)
        if not all(self._is_late(rank, more) for rank in range(len(places))):
            self._worked = []
            return False
        pids = {pid for pid, *_ in places}
        trees = [_tree(pid, pids - {pid}) for pid in (pid for pid, *_ in places)]
        if any(state(pid) == "D" for tree in trees for pid in tree):
            self._looks = [0] * len(places)
            return False
        before = self._trees if self._worked else trees
        self._trees = trees
        self._worked.append(
            [
                sum(max(0.0, x - old.get(pid, 0.0)) for pid, x in new.items())
                for old, new in zip(before, trees, strict=True)
            ]
        )
        return all(p[2] in _STEPS or self._is_idle(rank) for rank, p in enumerate(places))

    def _is_late(self, rank: int, more: float) -> bool:
        _, marks, hook, met = self._seen[rank]
        usual = self._patience.get((rank, hook), 0.0) if met and marks else math.inf
        return self._looks[rank] * EACH > max(self.seconds, usual) + more

    def _is_idle(self, rank: int) -> bool:
        looks = math.ceil(IDLE / EACH)
        recent = self._worked[-looks:]
        return len(self._worked) > looks and sum(one[rank] for one in recent) < IDLE / 20


def _compiles() -> bool:
    """Whether the main thread of this process is in PyTorch's compiler; not in what it has compiled."""
    frame = sys._current_frames().get(threading.main_thread().ident)
    while frame is not None:
        code = frame.f_code
        if (
            code.co_filename.endswith(("convert_frame.py", "compile_fx.py"))
            and "compile" in code.co_name
        ):
            return True
        frame = frame.f_back
    return False


def _tree(pid: int, others: set[int]) -> dict[int, float]:
    """The process and all below it, such as the workers of a DataLoader, but for the others: the seconds that
    each has worked, with those of its children that have ended."""
    found: dict[int, float] = {}
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        if one in found or one in others:
            continue
        used = map(int, _stat(one)[11:15])
        found[one] = sum(used) / os.sysconf("SC_CLK_TCK")
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            with suppress(OSError):
                waiting += map(int, children.read_text().split())
    return found


def state(pid: int) -> str:
    """R, S, T, ... of a process, where the system tells (Linux)."""
    return _stat(pid)[0]


def _stat(pid: int) -> list[str]:
    """What proc_pid_stat(5) lists behind the name."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return [""]
