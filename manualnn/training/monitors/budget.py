"""How much of the training time may go into looking at it."""

import time


class Budget:
    """A share of the time since `start`, spent bit by bit.

    What has been spent is what was measured: a slow machine, a large network or a noisy neighbour makes
    the looks rarer, not the run slower.

    Args:
        share: Of the time.
        at_end: Whether things are done once more when the run ends, in any case: that is paid for beforehand.
    """

    def __init__(self, share: float, at_end: bool = False):
        self.share, self.at_end = share, at_end
        self.spent, self._started = 0.0, None
        self._costs: dict[str, float | None] = {}

    def start(self) -> None:
        self._started, self.spent = time.perf_counter(), 0.0

    def allows(self, what: str, guess: float) -> bool:
        """Whether `what` may be done now; `guess`, in seconds, is its cost until it is known."""
        if self._started is None:
            return False
        cost = self._costs.get(what) or guess
        elapsed = time.perf_counter() - self._started
        return self.spent + cost * (2 if self.at_end else 1) <= self.share * elapsed

    def spend(self, what: str, seconds: float) -> None:
        """The first time tells little of the next one's cost: things are made then that are needed once."""
        seconds = max(0.0, seconds)
        self.spent += seconds
        self._costs[what] = seconds if what in self._costs else None
