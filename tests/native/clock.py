"""tests.sim.world.World's face under the real clock: the simulator's models run in it unchanged."""

import heapq
import itertools
import random
import time
from collections import Counter, deque
from collections.abc import Callable

from tests.sim.world import Planned, Waitable

_AT_ONCE_S = 1e-3  # shorter waits would cost a millisecond, epoll's grain: they only give others their turn


class RealWorld:
    """Planned calls are run by `run_due`, which the machine's loop calls."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.waitables: dict[int, Waitable] = {}
        self.violations: list[str] = []
        self.trace: deque[str] = deque(maxlen=400)
        self._next: deque[Planned] = deque()
        self._queue: list[Planned] = []
        self._order, self._numbers = itertools.count(), itertools.count(100)

    @property
    def now(self) -> float:
        return time.monotonic()

    def new_number(self) -> int:
        return next(self._numbers)

    def after(self, delay_s: float, call: Callable[[], None]) -> Planned:
        planned = Planned(self.now + delay_s, next(self._order), call)
        if delay_s < _AT_ONCE_S:
            self._next.append(planned)
        else:
            heapq.heappush(self._queue, planned)
        return planned

    def soon(self, call: Callable[[], None], least_s: float = 10e-6, most_s: float = 300e-6) -> Planned:
        return self.after(self.random.uniform(least_s, most_s), call)

    def run_due(self) -> None:
        """What was planned before this call and is due."""
        for _ in range(len(self._next)):
            planned = self._next.popleft()
            if planned.call is not None:
                planned.call()
        now = self.now
        while self._queue and self._queue[0].due <= now:
            planned = heapq.heappop(self._queue)
            if planned.call is not None:
                planned.call()

    def wait_s(self) -> float:
        """Until the next planned call."""
        if self._next:
            return 0.0
        return max(0.0, self._queue[0].due - self.now) if self._queue else 60.0

    def say(self, text: str) -> None:
        self.trace.append(f"{self.now:.6f} {text}")

    def violate(self, text: str) -> None:
        self.say(f"VIOLATION {text}")
        self.violations.append(text)
