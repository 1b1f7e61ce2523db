"""Which kills a run of the small workload is given: all of them, by forking, or those of one path.

`Branches` explores: at each place the run is forked, and in the child the process is dead; what the models then leave
open is forked likewise. `Replay` follows one path. Both count places in the same way, so a path that one prints the
other can follow: `57.1,203` is a kill at place 57, the second possibility of what that left open, and one at place 203.
"""

import mmap
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from tests.sim.processes import BETWEEN_EFFECTS, Process
from tests.sim.steady import SteadyRun

_HANGS_S = 300  # a branch that takes so long from one fork to the next does not end


@dataclass
class Kill:
    place: int
    who: str
    what: str
    choices: list[int] = field(default_factory=list)  # among what it left open

    def __str__(self) -> str:
        choices = list(self.choices)
        while choices and not choices[-1]:
            choices.pop()
        return ".".join(map(str, (self.place, *choices)))


@dataclass(frozen=True)
class Plan:
    kills: int  # at most, in one run
    jobs: int = 1  # branches at the same time
    anybody: bool = False  # not only who is about to act dies, but each process before each event
    first: Callable[[int], bool] = lambda place: True  # is this first place to be explored?
    slow: str = ""  # this and the next: see SteadyRun
    v0: bool = False


class Places:
    """Counts the places of a run, up to its end. `struck` says whether there is a kill; subclasses decide."""

    def __init__(self, anybody: bool) -> None:
        self.anybody = anybody
        self.run: SteadyRun | None = None
        self.count = 0
        self.kills: list[Kill] = []
        self._open = True

    def over(self) -> None:
        self._open = False

    def dies(self, process: Process, what: str) -> bool:
        """Where anybody may die between two events, those are no places of their own, but effects within them are."""
        return not (self.anybody and what in BETWEEN_EFFECTS) and self._place(process, what)

    def between(self) -> None:
        if self.anybody and self.run is not None:
            for process in list(self.run.processes.values()):
                if process.alive and self._place(process, "between two events"):
                    process.finish("killed")

    def _place(self, process: Process, what: str) -> bool:
        if not self._open:
            return False
        self.count += 1
        if not self.strikes():
            return False
        self.kills.append(Kill(self.count, f"{process.side} {process.role.split('.')[0]}", what))
        process.world.say(f"KILL {self.count}: {process} before {what}")
        return True

    def strikes(self) -> bool:
        raise NotImplementedError

    def choose(self, options: int) -> int:
        raise NotImplementedError

    def born(self) -> None:
        return None

    @property
    def path(self) -> str:
        return ",".join(map(str, self.kills))


class Replay(Places):
    """One branch again: `path`, as it was printed."""

    def __init__(self, path: str, anybody: bool = False) -> None:
        super().__init__(anybody)
        self._path = [[int(n) for n in kill.split(".")] for kill in path.split(",") if kill]

    def strikes(self) -> bool:
        return any(self.count == kill[0] for kill in self._path)

    def choose(self, options: int) -> int:
        if not self.kills:
            return 0
        last = self.kills[-1]
        said = next(kill for kill in self._path if kill[0] == last.place)[1:]
        last.choices.append(said[len(last.choices)] if len(last.choices) < len(said) else 0)
        return last.choices[-1]


class Branches(Places):
    """All branches. `leaf(end)` is told of the end of each but the first, and does not come back."""

    def __init__(self, plan: Plan, joined: Callable[[SteadyRun, int], bool], leaf: Callable[[str], NoReturn]) -> None:
        super().__init__(plan.anybody)
        self._plan, self._joined, self._leaf = plan, joined, leaf
        self._children: dict[int, int] = {}  # pid to first place
        self._healing = False
        self.failed: Callable[[int, int], None] = lambda place, status: None
        self.explored: Callable[[int], None] = lambda place: None

    # -- decisions ---------------------------------------------------------------------------------------------------
    def strikes(self) -> bool:
        if len(self.kills) >= self._plan.kills or (not self.kills and not self._plan.first(self.count)):
            return False
        self._healing = self._fork(self._plan.jobs if not self.kills else 1)
        return self._healing

    def choose(self, options: int) -> int:
        if not self.kills:
            return 0
        choices = self.kills[-1].choices
        for option in range(1, options):
            if self._fork(1):
                choices.append(option)
                return option
        choices.append(0)
        return 0

    def born(self) -> None:
        """All are back after a kill: has this state been met before? With no kill left its end is sooner come to."""
        run, left = self.run, self._plan.kills - len(self.kills)
        if not self._healing or not left or not self._open or run is None or not run.all_live():
            return
        self._healing = False
        if self._joined(run, left):
            self._leaf("equal")

    # -- forking -----------------------------------------------------------------------------------------------------
    def _fork(self, at_once: int) -> bool:
        """True in the child. The parent goes on when fewer than `at_once` children of its own are left."""
        pid = os.fork()
        if pid == 0:
            self._children = {}
            signal.alarm(_HANGS_S)
            return True
        self._children[pid] = self.count
        while len(self._children) >= at_once:
            self.wait()
        if self.kills:
            signal.alarm(_HANGS_S)
        return False

    def wait(self) -> None:
        signal.alarm(0)
        pid, status = os.wait()
        place = self._children.pop(pid)
        if status:
            self.failed(place, status)
        elif not self.kills:
            self.explored(place)

    def wait_for_all(self) -> None:
        while self._children:
            self.wait()


class Seen:
    """Digests of states, shared by all branches: 8 bytes each, in memory that a fork does not copy.

    A state that was met with more kills left has been explored further. Two branches that note the same state at the
    same time both go on: that costs time only.
    """

    def __init__(self, slots: int = 1 << 22) -> None:
        self._table = memoryview(mmap.mmap(-1, 8 * slots)).cast("Q")
        self._slots = slots

    def note(self, state: int, kills_left: int) -> bool:
        """Somebody is in it. True if somebody was, with as many kills left or more."""
        if self._noted(state, kills_left):
            return True
        for fewer in range(kills_left):
            self._noted(state, fewer)
        return False

    def _noted(self, state: int, kills_left: int) -> bool:
        state = (state << 3 & (1 << 64) - 1) | kills_left << 1 | 1  # 0 is a free slot
        place = (state >> 8) % self._slots
        while self._table[place]:
            if self._table[place] == state:
                return True
            place = (place + 1) % self._slots
        self._table[place] = state
        return False
