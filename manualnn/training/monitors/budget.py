"""How much of the training time may go into looking at it."""

import time


class Budget:
    """A share of the time since `start`, spent bit by bit.

    What has been spent is what was measured: a slow machine, a large network or a noisy neighbour makes
    the looks rarer, not the run slower.
    """

    def __init__(self, share: float):
        self.share, self.spent, self._started = share, 0.0, None
        self.costs: dict[str, float] = {}  # of the last time that each thing was done

    def start(self) -> None:
        self._started, self.spent = time.perf_counter(), 0.0

    def allows(self, what: str, guess: float) -> bool:
        """Whether `what` may be done now; `guess`, in seconds, is its cost before the first time."""
        if self._started is None:
            return False
        elapsed = time.perf_counter() - self._started
        return self.spent + self.costs.get(what, guess) <= self.share * elapsed

    def spend(self, what: str, seconds: float) -> None:
        self.costs[what] = max(0.0, seconds)
        self.spent += self.costs[what]
