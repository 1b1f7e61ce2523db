"""Virtual time, one seed, the events to come, and the trace. Everything that happens in a run happens in `World.run`.

An event is a call at a time. Two at the same time run in the order they were planned, so a seed has one trace.
"""

import hashlib
import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.sim.processes import Process


START = 1000.0  # the time at which every run begins


class Violation(AssertionError):
    """An invariant does not hold: this run has found a fault."""


class Killed(BaseException):
    """Unwinds the Python frames of a process that was killed in the middle of a handler. Nobody may catch it."""


@dataclass(order=True)
class Planned:
    due: float
    order: int
    call: Callable[[], None] | None = field(compare=False)

    def cancel(self) -> None:
        self.call = None


class Waitable:
    """What a loop can wait for: an fd number, whether it is ready, and who is to be woken."""

    def __init__(self, world: "World", ready: Callable[[], bool]) -> None:
        self.number, self.ready = world.new_number(), ready
        self.wakers: list[Callable[[], None]] = []
        world.waitables[self.number] = self

    def poke(self) -> None:
        for wake in self.wakers:
            wake()


class World:
    """One run. Everything random is drawn from `random`, in the order of the run."""

    def __init__(self, seed: int) -> None:
        self.seed, self.random = seed, random.Random(seed)
        self.now = START
        self.steps = 0
        self.counts: Counter[str] = Counter()
        self.waitables: dict[int, Waitable] = {}
        self.current: Process | None = None
        self.violation: Violation | None = None
        self.memory: list[object] = []  # buffers outlive their owners: a late transfer must land somewhere harmless
        self._queue: list[Planned] = []
        self._order = itertools.count()
        self._numbers = itertools.count(100)
        self._generations = itertools.count(1)
        self._trace: deque[str] = deque(maxlen=300)
        self._digest = hashlib.sha256()

    def new_number(self) -> int:
        return next(self._numbers)

    def new_generation(self, side: str, role: str) -> int:
        return next(self._generations) + 1_000_000

    # -- what a run draws, and one that explores tries ---------------------------------------------------------------
    def up_to(self, most: int) -> int:
        return self.random.randint(0, most)

    def perhaps(self, share: float) -> bool:
        return self.random.random() < share

    def dies(self, process: "Process", what: str) -> bool:
        """`process` is about to do `what`: is it killed here? Asked at each place; faults are planned otherwise."""
        return False

    def between(self) -> None:
        """An event is due."""

    # -- time ----------------------------------------------------------------------------------------------------
    def after(self, delay_s: float, call: Callable[[], None]) -> Planned:
        return self.at(self.now + delay_s, call)

    def at(self, due: float, call: Callable[[], None]) -> Planned:
        planned = Planned(due, next(self._order), call)
        heapq.heappush(self._queue, planned)
        return planned

    def soon(self, call: Callable[[], None], least_s: float = 10e-6, most_s: float = 300e-6) -> Planned:
        """After a short while of random length: what hardware, kernel and scheduler take."""
        return self.after(self.random.uniform(least_s, most_s), call)

    def run(self, until: Callable[[], bool], limit_s: float) -> bool:
        """Events in order until `until()`, or nothing more happens, or `limit_s` of virtual time are over."""
        end = self.now + limit_s
        while not until():
            if not self._queue or self._queue[0].due > end:
                self.now = end
                return until()
            planned = heapq.heappop(self._queue)
            if planned.call is None:
                continue
            self.now = max(self.now, planned.due)
            self.steps += 1
            self.between()
            planned.call()
            if self.violation is not None:
                raise self.violation
        return True

    # -- what happened -------------------------------------------------------------------------------------------
    def say(self, text: str) -> None:
        line = f"{self.now - START:11.6f} #{self.steps:<6} {text}"
        self._trace.append(line)
        self._digest.update(line.encode())

    def violate(self, text: str) -> None:
        """Noted at once, raised when the present event is through: a handler must not swallow it."""
        self.say(f"VIOLATION {text}")
        if self.violation is None:
            self.violation = Violation(text)

    def tail(self, lines: int = 60) -> str:
        return "\n".join(list(self._trace)[-lines:])

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()
