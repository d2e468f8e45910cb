"""A run in several processes: when one of them dies or hangs, the others end too, and say so."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies.launchers import subprocess_script

from manualnn.training.errors import TrainingError
from manualnn.training.run.heartbeat import EACH, Heartbeat, state

GRACE = 5.0  # seconds to end in order, with what it was doing, before it is ended
STOPPED = 30.0  # seconds of standing still, as after SIGSTOP, that others wait for a process
NOTICE = 3.0  # seconds from when a connection breaks to when the process behind it is known dead


class ProcessLost(Exception):
    """Another process of the run has died; `status` is this one's exit status."""

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status


class ProcessWatch(Callback):
    """The first process watches those it has started, and they watch the first.

    Without it the others wait for the dead one, in a collective operation, until its time is out:
    half an hour. Lightning's own watch, every five seconds, kills the first without a word. A process
    that was started by something else (torchrun, SLURM) is looked after by that.

    Args:
        kept: Says what is left of the run.
        heartbeat: The run's, the first of its callbacks.
    """

    def __init__(self, kept: Callable[[], str], heartbeat: Heartbeat):
        self.lost: ProcessLost | None = None
        self._kept, self._heartbeat = kept, heartbeat
        self._over = False  # this process ends by itself
        self._children: list[subprocess.Popen] = []
        self._parent: int | None = None
        self._looks: dict[int, int] = {}  # at a process that stands still, one after another

    @contextmanager
    def launching(self, processes: int) -> Iterator[None]:
        """Takes the place of Lightning's watch over what is launched meanwhile."""
        lightnings = subprocess_script._launch_process_observer
        subprocess_script._launch_process_observer = self._launched
        try:
            with self._heartbeat.shared(processes):
                yield
        except BaseException:
            self._over = True
            self._end_children()
            raise
        finally:
            subprocess_script._launch_process_observer = lightnings

    def _launched(self, children: list[subprocess.Popen]) -> None:
        self._children = children
        threading.Thread(target=self._look, daemon=True).start()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        environment = getattr(trainer.strategy, "cluster_environment", None)
        ours = isinstance(environment, LightningEnvironment) and trainer.local_rank > 0
        if ours and self._parent is None:
            self._parent = os.getppid()
            threading.Thread(target=self._look, daemon=True).start()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        # Now, because what follows breaks the connections to processes that are well.
        if isinstance(exception, (KeyboardInterrupt, SystemExit, TrainingError)):
            return
        if self._children or self._parent is not None:
            self.lost = self._wait_for_death(NOTICE)
            if self.lost is None and "timed out" in str(exception).lower():
                # Alive, and no longer at work: what all take part in was not waited for any longer.
                self.lost = ProcessLost(f"another process of the run hangs; {self._kept()}")

    def _look(self) -> None:
        while True:
            if self._children and all(child.poll() == 0 for child in self._children):
                return
            time.sleep(EACH)
            if self._death() or self._hang():
                time.sleep(GRACE)
                if self._over:
                    return
                if lost := self._death() or self._hang():  # still
                    break
        self._end_children()
        print(f"\ntrain.py: {lost}", file=sys.stderr, flush=True)
        if self._parent is not None and os.getppid() == self._parent:
            # It was stopped or hangs, and would stay for ever.
            os.kill(self._parent, signal.SIGKILL)
        os._exit(lost.status)

    def _wait_for_death(self, seconds: float) -> ProcessLost | None:
        end = time.monotonic() + seconds
        while (lost := self._death()) is None and time.monotonic() < end:
            time.sleep(0.05)
        return lost

    def _death(self) -> ProcessLost | None:
        count = len(self._children) + 1
        for rank, child in enumerate(self._children, 1):
            if code := child.poll():
                how = f"exit status {code}" if code > 0 else signal.Signals(-code).name
                message = f"process {rank} of the run's {count} (0 to {count - 1}) died: {how}"
                return ProcessLost(f"{message}; {self._kept()}", code if code > 0 else 1)
            if self._stands_still(child.pid):
                message = f"process {rank} of the run's {count} (0 to {count - 1}) was stopped"
                return ProcessLost(f"{message}; {self._kept()}")
        if self._parent is not None and self._stands_still(self._parent):
            return ProcessLost(f"process 0 of the run was stopped; {self._kept()}")
        if self._parent is not None and os.getppid() != self._parent:
            return ProcessLost(f"process 0 of the run died; {self._kept()}")
        return None

    def _hang(self) -> ProcessLost | None:
        heartbeat = self._heartbeat
        # The first process says it. If it cannot, another one does.
        hangs = heartbeat.hangs(more=0.0 if self._parent is None else 8.0)
        if not hangs:
            return None
        return ProcessLost(
            f"no process of the run has got on for {heartbeat.seconds:.0f} s: one of them hangs "
            "(--trainer.strategy DDPStrategy with a --trainer.strategy.timeout waits for that long); "
            f"{self._kept()}"
        )

    def _stands_still(self, pid: int) -> bool:
        """Whether each look for so long has found it stopped. Ctrl-Z stops all of them, and no one looks."""
        self._looks[pid] = self._looks.get(pid, 0) + 1 if state(pid) in ("T", "t") else 0
        return self._looks[pid] * EACH > STOPPED

    def _end_children(self) -> None:
        for child in self._children:
            if child.poll() is None:
                child.kill()
