"""Spawner and twin of one side, and the Unix socket between them, the watchdog and whoever has descriptors kept.

Copies tools.supervise.spawner and twin, which are forks, waits and select and cannot run here: a child is born a while
after the order and takes its name then; orders that lie in the socket of a dead spawner are lost; the exit status of a
child is told by its parent only; the twin has copies of what is kept, takes the place when its spawner's pidfd says so,
and forks a twin of its own (tests/unit/test_supervise_live.py, tests/chaos/test_native.py). That there is a watchdog is
kept by the product's own tools.supervise.keeper; the socket's other ends are the product's as well.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bus.role import WATCHDOG
from common.errors import Gone
from tests.sim.processes import Process
from tests.sim.world import Waitable
from tools.supervise.birth import START
from tools.supervise.keeper import Keeper
from tools.supervise.plan import WATCHDOG_ENTRY, RoleSpec

if TYPE_CHECKING:
    from tests.sim.supervision import Supervision

Store = dict[str, dict[str, int]]
_NAME_S, _RETRY_S = 2.0, 5e-3


class End:
    """One end of a connection: socket.socket(AF_UNIX, SOCK_SEQPACKET). What was sent before a death can be read."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.other: End | None = None
        self.inbox: deque[tuple[dict[str, Any], list[int]]] = deque()
        self.closed = False
        self.waitable = Waitable(process.world, lambda: bool(self.inbox) or self.at_end)
        process.on_death.append(self.close)

    @property
    def at_end(self) -> bool:
        return self.other is not None and self.other.closed

    def setblocking(self, blocking: bool) -> None: ...

    def fileno(self) -> int:
        return self.waitable.number

    def connect(self, path: str) -> None:
        from tests.sim.run import here

        supervision = here().supervision
        assert supervision is not None
        spawner = supervision.listening[path.split("/")[0]]
        if spawner is None or not spawner.process.alive:
            raise ConnectionRefusedError("nobody listens")
        self.other = End(spawner.process)
        self.other.other = self
        spawner.accept(self.other)

    def close(self) -> None:
        self.closed = True
        if self.other is not None:
            self.other.waitable.poke()


def send(end: End, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    """bus.fds.send."""
    end.process.effect("spawner socket")
    if end.other is None or end.at_end:
        raise Gone("the other end of the fd socket is dead")
    end.other.inbox.append((dict(message), list(fds)))
    end.other.waitable.poke()


def receive(end: End) -> tuple[dict[str, Any], list[int]]:
    """bus.fds.receive."""
    if end.inbox:
        return end.inbox.popleft()
    if end.at_end:
        raise Gone("the other end of the fd socket is dead: end of file")
    raise BlockingIOError


class Spawner:
    """tools.supervise.spawner.Spawner in `process`, once it has the name."""

    def __init__(self, side: Supervision, process: Process, store: Store) -> None:
        self.side, self.process, self.store, self._loop = side, process, store, process.loop
        side.take_name(process)
        side.listening[process.side] = self
        self.children: dict[int, Process] = {}
        self._ends: list[End] = []
        self.twin: Twin | None = None
        runtime: Any = side.runtime(process.side)
        log: Any = side.log(process)
        self.keeper = Keeper(runtime, log, self._fork_watchdog)
        self._adopted: int | None = None  # the pidfd that is watched
        self._watch_adopted()
        self._planned = 0.0
        self._loop.before_wait(self._before_wait)

    def _before_wait(self) -> None:
        if self.twin is None:
            self._renew_twin()
        due = self.side.world.now + self.keeper.patience()
        if due != self._planned:
            self._planned = due
            self._loop.after(self.keeper.patience(), self._keep)

    def _keep(self) -> None:
        self.keeper.keep()
        self._watch_adopted()
        self._planned = 0.0

    def _watch_adopted(self) -> None:
        if self.keeper.pidfd not in (None, self._adopted):
            self._adopted = self.keeper.pidfd
            self._loop.watch(self._adopted, self._adopted_watchdog_died)

    # -- forking -----------------------------------------------------------------------------------------------------
    def _fork(self, spec: RoleSpec, function: str, kept: dict[str, int]) -> Process:
        self.process.effect("fork")
        child = self.side.fork(self.process, spec, function, kept)
        self.children[child.pid] = child
        self.process.effect("forked")
        return child

    def _fork_watchdog(self) -> int:
        return self._fork(RoleSpec(WATCHDOG, WATCHDOG_ENTRY), START, {}).pid

    def _renew_twin(self) -> None:
        self.process.effect("fork")
        self.twin = Twin(self)
        self._tell({"event": "twin", "pid": self.twin.process.pid})

    def reap(self, child: Process, status: int) -> None:
        """SIGCHLD."""
        if self.twin is not None and child is self.twin.process:
            self.twin = None
        elif self.children.pop(child.pid, None) is not None:
            if child.pid == self.keeper.pid:
                self.keeper.died(status)
            self._tell({"event": "exit", "role": child.role, "pid": child.pid, "status": status})

    def _adopted_watchdog_died(self) -> None:
        if self.keeper.pidfd is not None:
            self._loop.unwatch(self.keeper.pidfd)
        self.keeper.died(None)

    # -- orders ------------------------------------------------------------------------------------------------------
    def accept(self, end: End) -> None:
        self._ends.append(end)
        self._loop.watch(end.fileno(), lambda: self._read(end))

    def _read(self, end: End) -> None:
        try:
            message, received = receive(end)
        except Gone:
            return self._forget(end)
        match message["do"]:
            case "beat":
                self.keeper.heard()
                self._send(end, {"event": "beat"})
            case "watch":
                self.keeper.heard()
                twin = None if self.twin is None else self.twin.process.pid
                told = {"event": "hello", "pid": self.process.pid, "twin": twin, "children": list(self.children)}
                self._send(end, told)
            case "spawn":
                self._order(end, message)
            case "keep":
                self._keep_for(message["role"], dict(zip(message["names"], received, strict=True)))
                self._send(end, {"event": "kept"})
            case "shutdown":
                self._shutdown()
            case other:
                self.side.world.violate(f"{self.process} is told to {other}")

    def _shutdown(self) -> None:
        """Watchdog, twin, whatever is left of its children, and then itself."""
        watchdog = self.side.holder(self.process.side, WATCHDOG)
        twin = None if self.twin is None else self.twin.process
        for process in (watchdog, twin, *self.children.values()):
            if process is not None:
                process.finish("killed by its spawner")
        self.process.end("stopped by itself with 0")

    def _order(self, end: End, message: dict[str, Any]) -> None:
        spec, function = RoleSpec.of(message), message["function"]
        self.side.judge_order(self.process, spec.role, function)
        kept = self.store.get(spec.role, {}) if function == START else {}
        child = self._fork(spec, function, dict(kept))
        told = {"event": "spawned", "role": spec.role, "serial": message["serial"]}
        pidfd = self.side.open_pidfd(child)
        self._send(end, told | {"pid": child.pid, "generation": child.generation}, (pidfd,))

    def _keep_for(self, role: str, fds: dict[str, int]) -> None:
        self.side.hold(self.process, self.store, role, fds)
        self.process.effect("kept")
        if self.twin is not None and self.twin.process.alive:
            self.side.hold(self.twin.process, self.twin.store, role, fds)

    def _send(self, end: End, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        try:
            send(end, message, fds)
        except Gone:
            self._forget(end)

    def _tell(self, message: dict[str, Any]) -> None:
        for end in list(self._ends):
            self._send(end, message)

    def _forget(self, end: End) -> None:
        if end in self._ends:
            self._ends.remove(end)
            self._loop.unwatch(end.fileno())
            end.close()


class Twin:
    """tools.supervise.twin: dormant until its spawner is dead, then the next one in the same process."""

    def __init__(self, spawner: Spawner) -> None:
        self._side, world = spawner.side, spawner.side.world
        self.process = self._side.newborn(spawner.process.side, "twin", spawner.process)
        self.store = {role: dict(fds) for role, fds in spawner.store.items()}
        for role, fds in self.store.items():
            self._side.hold(self.process, self.store, role, fds)
        self._side.show(self.process)
        self._spawner_fd = self._side.open_pidfd(spawner.process)
        self.process.loop.watch(self._spawner_fd, self._wake_up)
        self._give_up = 0.0
        self._tries = itertools.count()
        self._now: Callable[[], float] = lambda: world.now

    def _wake_up(self) -> None:
        self.process.loop.unwatch(self._spawner_fd)
        self._side.rename(self.process, "spawner")
        self._give_up = self._now() + _NAME_S
        self._succeed()

    def _succeed(self) -> None:
        """A child just forked by the dead spawner may hold the name a moment."""
        try:
            Spawner(self._side, self.process, self.store)
        except Gone:
            if self._side.holder(self.process.side, "spawner") is not None or self._now() > self._give_up:
                raise
            self.process.loop.after(_RETRY_S, self._succeed)
