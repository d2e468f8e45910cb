"""Signals that end a run in order: what it has learned is kept first."""

import signal
import threading
from types import FrameType

# What schedulers of clusters, systems and closing terminals send; not all are there on Windows.
ASKING = [
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)
]


class EndSignals:
    """While installed, remembers the first of the signals above; the second of a kind does what it always did.

    Lightning's own handlers are replaced meanwhile, when it has set them: one waits for the other processes
    within the handler, which never comes to an end; SLURM's leaves a checkpoint in the working folder.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def install(self) -> None:
        # Python hands signals to the main thread alone, and lets no other set a handler.
        if threading.current_thread() is threading.main_thread() and not self._before:
            self._before = {one: signal.signal(one, self._receive) for one in ASKING}

    def remove(self) -> None:
        for one, handler in self._before.items():
            if signal.getsignal(one) == self._receive:
                signal.signal(one, handler)
        self._before = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received = signal.Signals(number)
