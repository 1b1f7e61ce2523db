"""The small workload that is explored: nothing in it is drawn, so a run is told by where its processes were killed.

Two exports, on each one after the other a write, a FLUSH, a read and a discard, in two orders, from the birth of the
first role until all roles are back and the link is up. What is random under a seed takes the middle of its range here,
a packet at a time moves over the cable, and what waits for 5 ms or longer ends at a whole multiple of 5 ms, a
successor's birth at one of 50 ms: two kills that leave the same behind then come to the same state at the same time.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from math import ceil
from typing import Protocol, TypeVar

from gadget.ublk.abi import BlockOp
from gadget.usb.link import Link
from host.session.core import State
from host.source.core import Job
from tests.sim.model_source import Disk
from tests.sim.processes import Process
from tests.sim.run import EXPORTS, REST_S, Run, substituted
from tests.sim.workload import Workload
from tests.sim.world import Planned, World

GRID_S, BIRTHS_S = 5e-3, 50e-3
# By export: what becomes durable is looked at after the write, and after the discard; and a write that is done twice
# would be seen where no FLUSH waits for it.
OPS = {
    0xA1: (BlockOp.WRITE, BlockOp.FLUSH, BlockOp.READ, BlockOp.DISCARD),
    0xB2: (BlockOp.WRITE, BlockOp.READ, BlockOp.DISCARD, BlockOp.FLUSH),
}
NUMBERS = 1 << 36  # fds begin here, so that one is known when it is seen
_SETTLE_S = 50e-3  # a new epoch and its hand-shake take 10 ms
_LBA, _BLOCKS = 3, 2
_QUICK_S, _SLOW_S = 1e-3, 0.4  # at the most: half of it
_THINK_S = dict(zip(EXPORTS, (100e-6, 1.1e-3), strict=True))  # so that the two do not go in step
_T = TypeVar("_T")


class Guide(Protocol):
    """Who decides what a run leaves open."""

    def dies(self, process: Process, what: str) -> bool: ...
    def choose(self, options: int) -> int: ...
    def between(self) -> None: ...
    def born(self) -> None: ...
    def over(self) -> None: ...


class Steady:
    """In the place of random.Random: always the same."""

    def __init__(self, world: "SteadyWorld") -> None:
        self._world = world
        self.draws: Counter[int] = Counter()  # by generation

    def uniform(self, least: float, most: float) -> float:
        return round((least + most) / 2, 6)

    def choice(self, among: Sequence[_T]) -> _T:
        return among[0]

    def shuffle(self, among: list[_T]) -> None:
        """In another order after each birth: a request that is issued again comes under another tag."""
        turn = self._world.births.total() % max(1, len(among))
        among[:] = among[turn:] + among[:turn]

    def random(self) -> float:
        return 0.5

    def getrandbits(self, bits: int) -> int:
        """Another one each time and in each incarnation; what others have drawn does not matter."""
        generation = self._world.current.generation if self._world.current is not None else 0
        self.draws[generation] += 1
        return generation * 64 + self.draws[generation]


class SteadyWorld(World):
    def __init__(self, guide: Guide) -> None:
        super().__init__(0)
        self.random = Steady(self)  # type: ignore[assignment]
        self.guide = guide
        self._roles: list[tuple[str, str]] = []
        self.births: Counter[tuple[str, str]] = Counter()

    def new_number(self) -> int:
        return super().new_number() + NUMBERS

    def new_generation(self, side: str, role: str) -> int:
        """Of which role and which incarnation, whatever was born before it; a ms apart, as common.follow wants them."""
        if (side, role) not in self._roles:
            self._roles.append((side, role))
        self.births[side, role] += 1
        return (self.births[side, role] << 20) + self._roles.index((side, role))

    def at(self, due: float, call: Callable[[], None]) -> Planned:
        return super().at(round(_up(due, GRID_S) if due - self.now >= GRID_S else due, 7), call)

    def up_to(self, most: int) -> int:
        return self.guide.choose(most + 1)

    def perhaps(self, share: float) -> bool:
        return bool(self.guide.choose(2))

    def dies(self, process: Process, what: str) -> bool:
        return self.guide.dies(process, what)

    def between(self) -> None:
        self.guide.between()


def _up(time: float, to: float) -> float:
    return ceil(time / to - 1e-6) * to


class SteadyDisk(Disk):
    """Its first job of one kind takes so long that the successor of whoever asked may have asked again before."""

    def __init__(self, world: World, size_bytes: int, slow: str) -> None:
        super().__init__(world, size_bytes)
        self.slow = slow

    def longest_s(self, job: Job) -> float:
        if job.op.name != self.slow:
            return _QUICK_S
        self.slow = ""
        return _SLOW_S


class SteadyRun(Run):
    """The small workload under `guide`. `slow`: the operation (Op) whose first job at each source takes long; `v0`: the
    gadget speaks the old wire."""

    def __init__(self, guide: Guide, slow: str = "", v0: bool = False) -> None:
        self.guide = guide
        super().__init__(0, world=SteadyWorld(guide))
        self.v0 = self.link.v0 = v0
        self.disks = {name: SteadyDisk(self.world, len(disk.bytes), slow) for name, disk in self.disks.items()}
        self.left = {export_id: list(ops) for export_id, ops in OPS.items()}  # what is still to be done
        self._settled = 0.0  # then the last birth has been noticed
        self.began: dict[int, float] = {}  # when the first of that was

    def _again(self, side: str, role: str) -> None:
        self.world.at(_up(self.world.now + 1e-3, BIRTHS_S), lambda: self.start(side, role))

    def start(self, side: str, role: str) -> None:
        super().start(side, role)
        self._settled = self.world.after(_SETTLE_S, lambda: None).due
        self.guide.born()

    def execute(self) -> None:
        with substituted(self):
            try:
                users = Workload(self.world, self.driver, self.checker, self._first_roles(), 0, zeroes_refused=False)
                for export_id in EXPORTS:
                    self._next(users, export_id)
                self._until(lambda: not any(self.left.values()), REST_S, "the requests to be completed", users)
                self._until(self.whole, REST_S, "all roles to be back and the link up", users)
                self.guide.over()
                self._last_reads(users)
            finally:
                self._end()

    def _next(self, users: Workload, export_id: int) -> None:
        number, left = users.device(export_id), self.left[export_id]
        if number is None:
            self.world.after(GRID_S, lambda: self._next(users, export_id))
            return

        def ended() -> None:
            left.pop(0)
            if left:
                self.world.after(_THINK_S[export_id], lambda: self._next(users, export_id))

        self.began[export_id] = self.world.now
        users.request(number, export_id, left[0], _LBA, _BLOCKS, ended)

    def whole(self) -> bool:
        """Every role lives and says it is ready, all have noticed each other's births, and the link is up."""
        gadget, host = self.shells.get(("gadget", "usb")), self.shells.get(("host", "session"))
        return (
            self.all_live()
            and self.world.now >= self._settled
            and all(role.is_ready for role in self.roles.values())
            and gadget is not None
            and gadget._core.link is Link.ONLINE
            and host is not None
            and host._core.state is State.ONLINE
        )
