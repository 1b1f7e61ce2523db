"""What a role's shell is given: its place, log, arenas, lanes and watchdog, as bus.role.Role gives them.

The lanes are the product's. With `watchdogs` in a run's setting the watchdog is a process like others, and the lane to
it is the product's too; else it is the run itself (`tell_watchdog`).
"""

import mmap
from collections.abc import Callable
from ctypes import addressof, c_char
from math import inf
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from bus.envelope import Kind
from bus.lane import LaneClient, LaneServer
from bus.role import WATCHDOG
from common import limits
from common.errors import Gone
from tests.sim.model_bus import SimContext
from tests.sim.processes import Process

if TYPE_CHECKING:
    from tests.sim.run import Run

INSTANCE = "sim"


def _here() -> "Run":
    from tests.sim.run import here

    return here()


def private_memory(fd: int, size_bytes: int) -> mmap.mmap:
    """mmap.mmap of no file, but private: a fork of the run would write into shared pages of its parent's."""
    return mmap.mmap(fd, size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class SimLog:
    """common.log.Log into the trace."""

    def __init__(self, run: "Run", process: Process) -> None:
        self._run, self._process = run, process

    def _say(self, text: str) -> None:
        self._run.world.say(f"{self._process}: {text}")

    debug = info = warning = error = _say


class SimArena:
    """bus.arena.Arena: memory both processes map. Nothing is ever unmapped, so that a late transfer can be seen."""

    def __init__(self, memory: mmap.mmap, generation: int) -> None:
        self.generation, self.size_bytes, self.locked = generation, len(memory), True
        self._mapped = memory
        self.memory = memoryview(memory)
        self.address = addressof(c_char.from_buffer(memory))

    @staticmethod
    def create(runtime: "SimRuntime", owner: str, generation: int, size_bytes: int) -> "SimArena":
        run = _here()
        run.current_process.effect("arena create")
        for key in [k for k in run.arenas if k[:2] == (runtime.side, owner)]:
            del run.arenas[key]
        memory = private_memory(-1, size_bytes)
        run.world.memory.append(memory)
        run.arenas[runtime.side, owner, generation] = memory
        return SimArena(memory, generation)

    @staticmethod
    def attach(runtime: "SimRuntime", owner: str, generation: int) -> "SimArena":
        memory = _here().arenas.get((runtime.side, owner, generation))
        if memory is None:
            raise Gone(f"arena {owner}@{generation}: its owner was replaced")
        return SimArena(memory, generation)

    def unlink(self) -> None:
        run = _here()
        run.arenas = {key: memory for key, memory in run.arenas.items() if memory is not self._mapped}


class SimRuntime:
    """bus.runtime.Runtime: names."""

    instance = INSTANCE
    root = "/sim"

    def __init__(self, side: str) -> None:
        self.side, self.root = side, side

    def endpoint(self, role: str, lane: str) -> str:
        return f"{self.side}/{role}.{lane}"

    def state_path(self) -> str:
        return f"{self.side}/state"

    def spawner_socket(self) -> str:
        return f"{self.side}/spawner"

    def death_path(self, role: str) -> Any:
        return SimpleNamespace(write_text=lambda how: None)


class SimRole:
    """bus.role.Role, with the supervisor of the run as its watchdog. The lanes are the product's."""

    def __init__(self, run: "Run", process: Process, args: dict[str, Any], fds: dict[str, int]) -> None:
        self._run, self._process = run, process
        self.runtime, self.name, self.generation = SimRuntime(process.side), process.role, process.generation
        self.args, self.birth = args, SimpleNamespace(fds=fds)
        self.loop: Any = process.loop  # in the place of bus.loop.Loop
        self.log = SimLog(run, process)
        self.context: Any = SimContext(run.hub, process)
        self.status: Callable[[], dict[str, Any]] = dict
        self.on_drain: Callable[[], None] = lambda: None
        self.note: Callable[[dict[str, Any]], None] = lambda note: None
        self.introduce: Callable[[], None] = lambda: None
        self.is_ready, self.ready_at = False, inf

    def is_process(self, process: Process) -> bool:
        return self._process is process

    def connect(self, server: str, lane: str, hello: Any, on_peer: Any, on_message: Any) -> LaneClient:
        endpoint, context = self.runtime.endpoint(server, lane), self.context
        return LaneClient(
            self.loop,
            context,
            self.log,
            self.name,
            self.generation,
            endpoint,
            hello,
            on_peer,
            on_message,
        )

    def serve(self, lane: str, on_peer: Any, on_message: Any) -> LaneServer:
        endpoint, context = self.runtime.endpoint(self.name, lane), self.context
        return LaneServer(
            self.loop,
            context,
            self.log,
            self.name,
            self.generation,
            endpoint,
            on_peer,
            on_message,
        )

    def method(self, name: str, handler: Any) -> None:
        return None

    def ready(self) -> None:
        self.is_ready, self.ready_at = True, self._run.world.now

    def on_watchdog(self, introduce: Callable[[], None], note: Callable[[dict[str, Any]], None]) -> None:
        self.introduce, self.note = introduce, note
        self._run.world.soon(lambda: self.loop.post(introduce))

    def tell_watchdog(self, note: dict[str, Any]) -> None:
        self._process.effect("tell watchdog")
        self._run.from_role(self, self._process, note)


class WatchedRole(SimRole):
    """With a watchdog that is a process, and the lane to it as bus.role.Role has it."""

    def __init__(self, run: "Run", process: Process, args: dict[str, Any], fds: dict[str, int]) -> None:
        super().__init__(run, process, args, fds)
        self._watchdog: LaneClient | None = None
        self.on_drain = lambda: self.loop.stop(0)
        if self.name != WATCHDOG:
            self._watchdog = self.connect(WATCHDOG, "roles", self._hello, self._introduce, self._heard)
        self.loop.beat(limits.BEAT_S, lambda: self.tell_watchdog({"note": "beat"}))

    def _hello(self) -> dict[str, Any]:
        return {"pid": self._process.pid, "ready": self.is_ready}

    def _introduce(self, generation: int) -> None:
        self.introduce()

    def _heard(self, kind: Kind, body: Any) -> None:
        if body["note"] == "alive?":
            self.tell_watchdog({"note": "beat"})
        else:
            self.note(body)

    def ready(self) -> None:
        if not self.is_ready:
            super().ready()
            self.tell_watchdog({"note": "ready"})

    def on_watchdog(self, introduce: Callable[[], None], note: Callable[[dict[str, Any]], None]) -> None:
        self.introduce, self.note = introduce, note

    def tell_watchdog(self, note: dict[str, Any]) -> None:
        if self._watchdog is not None:
            self._watchdog.send(Kind.NOTE, note)
