"""The stages of the fault table: named steps of the roles, and how one is brought there while I/O is in flight.

A stage counts only when its role has told that it is there (common/trace.py). It is then killed, or stopped while
another event strikes, and goes on in a world that has changed.
"""

import os
import select
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from threading import Thread
from typing import Any

from bus import fds
from bus.control import ask
from bus.runtime import Runtime, Side, living, run_state, start_ticks
from common.errors import Gone
from tests.chaos.events import STOPPED_S, Cut, Event, Key, Kill, Stop, Terminate, Unplug, WholeSide, kind_of, pid_of

REACH_S = 30.0  # for a role to come to a point that was made sure of; the guest stalls


class Way(Enum):
    """What brings a role to a point."""

    IO = "an I/O"
    RESET = "a reset of the USB device, after which host and gadget shake hands"
    BIRTH = "its predecessor's death"
    DEATH = "the death of another role"


@dataclass(frozen=True)
class Stage:
    """`role` at `point`. `by` is the role whose death brings it there (DEATH)."""

    side: Side
    role: str
    point: str
    way: Way
    by: str = ""

    def __str__(self) -> str:
        return f"{self.side} {kind_of(self.role)} at {self.point}"

    def dead(self) -> set[Key]:
        """Who has to die to bring it there."""
        victim = {Way.BIRTH: self.role, Way.DEATH: self.by}.get(self.way)
        return set() if victim is None else {(self.side, victim)}

    def reach(self, act: str) -> int:
        """Returns the pid of the one that is there now: dead if `act` is kill, stopped if it is stop."""
        with _ear() as (place, ear):
            asking = self._arm({"name": self.point, "act": act, "tell": os.fspath(place)})
            if self.way is Way.RESET and not _reached_first(ear, asking):
                Unplug(Cut.RESET).strike()
            for side, role in self.dead():
                os.kill(pid_of(side, role), signal.SIGKILL)
            try:
                return int(ear.recv(200).split()[1])
            except TimeoutError:
                raise RuntimeError(f"{self}: not reached within {REACH_S:g} s") from None

    def _arm(self, point: dict[str, Any]) -> Thread | None:
        """Who still asks for it when this returns, if somebody does."""
        runtime = Runtime(self.side)
        if self.way is Way.BIRTH or self.role == "spawner":
            arm_next(runtime, self.role, point)
        elif self.way is Way.DEATH:
            ask(runtime, self.role, "trace", point)
        else:
            # Beside us: what it does next may kill it before its answer has left. What counts is the record.
            asking = Thread(target=_ask, args=(runtime, self.role, point), daemon=True)
            asking.start()
            return asking
        return None


def _ask(runtime: Runtime, role: str, point: dict[str, Any]) -> None:
    with suppress(Gone):
        ask(runtime, role, "trace", point)


def _reached_first(ear: socket.socket, asking: Thread | None) -> bool:
    """Is it there before the one that armed it had its answer? By what was struck before it may just be on its way."""
    while asking is not None and asking.is_alive():
        if select.select([ear], [], [], 0.005)[0]:
            return True
    return False


@contextmanager
def _ear() -> Iterator[tuple[Path, socket.socket]]:
    place = Path(tempfile.mkdtemp()) / "reached"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
            ear.bind(os.fspath(place))
            ear.settimeout(REACH_S)
            yield place, ear
    finally:
        shutil.rmtree(place.parent)


def arm_next(runtime: Runtime, role: str, point: dict[str, Any]) -> None:
    """The next process of `role` is born with this kill point; `spawner` itself is armed now."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as link:
        link.settimeout(REACH_S)
        link.connect(os.fspath(runtime.spawner_socket()))
        fds.send(link, {"do": "arm", "role": role, "trace": point})
        while fds.receive(link)[0].get("event") != "armed":  # what its watchdog is told we are told, too
            pass


@dataclass(frozen=True)
class At:
    """`event` while the role of `stage` is there; None: that role is killed there."""

    stage: Stage
    event: Event | None

    def __str__(self) -> str:
        return " at ".join(self.told())

    def told(self) -> tuple[str, str]:
        """Event and stage, as the table names them."""
        return ("SIGSTOP" if self._sleeps() else str(self.event or "kill -9")), str(self.stage)

    def _sleeps(self) -> bool:
        """Is it the stage's own role that is stopped for a while?"""
        return self.event == Stop(self.stage.side, self.stage.role)

    def strike(self) -> None:
        """Returns when all has happened. RuntimeError if the stage is not reached."""
        if self.event is None:
            await_state(self.stage.reach("kill"), "dead")
            return
        pid = self.stage.reach("stop")
        await_state(pid, "T")
        record = living(Runtime(self.stage.side), self.stage.role)
        try:
            if self._sleeps():
                time.sleep(STOPPED_S)  # in `role.starting` it has no name yet that it could be found by
            else:
                self.event.strike()
        finally:
            if record is None or record.pid == pid:
                _go_on(pid)


def await_state(pid: int, state: str) -> None:
    """A role tells before it stops or dies: woken too early it would sleep for ever, or be taken for its successor."""
    end = time.monotonic() + REACH_S
    while _state(pid) != state:
        if time.monotonic() > end:
            raise RuntimeError(f"{pid}: is {_state(pid)}, not {state}, {REACH_S:g} s after it told of it")
        time.sleep(0.001)  # nothing announces it to one who is not its parent


def _state(pid: int) -> str:
    """Of proc_pid_stat(5); dead when its last thread is: until then its name is not free, and no successor is born."""
    return "dead" if start_ticks(pid) is None else run_state(pid)


def _go_on(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGCONT)  # stopped by itself: its pid is its own until its parent has reaped it
    except ProcessLookupError:
        return


POINTS: dict[tuple[Key, Way], tuple[str, ...]] = {
    ((Side.GADGET, "queue"), Way.IO): ("queue.request.taken", "queue.requests.sent", "queue.committing"),
    ((Side.GADGET, "queue"), Way.BIRTH): (
        "role.starting",
        "queue.recovering",
        "queue.fetching",
        "queue.fetched",
        "queue.started",
        "role.ready",
    ),
    ((Side.GADGET, "usb"), Way.IO): (
        "usb.request.sending",
        "usb.transfers.submitted",
        "usb.answer.arrived",
        "usb.completions.sending",
    ),
    ((Side.GADGET, "usb"), Way.RESET): ("usb.configured",),
    ((Side.GADGET, "usb"), Way.BIRTH): ("role.starting", "usb.taking_over", "role.ready"),
    ((Side.GADGET, "session"), Way.RESET): ("session.configuring", "session.saved"),
    ((Side.GADGET, "session"), Way.BIRTH): ("role.starting", "role.ready"),
    ((Side.GADGET, "watchdog"), Way.BIRTH): ("role.starting", "role.ready"),
    ((Side.GADGET, "watchdog"), Way.DEATH): ("watchdog.death.seen", "watchdog.ordering", "watchdog.birth.told"),
    ((Side.GADGET, "spawner"), Way.DEATH): ("spawner.forked",),
    ((Side.HOST, "usb"), Way.IO): (
        "usb.request.arrived",
        "usb.payload.taken",
        "usb.requests.forwarding",
        "usb.answering",
    ),
    ((Side.HOST, "usb"), Way.RESET): ("usb.epoch.begun",),
    ((Side.HOST, "usb"), Way.BIRTH): ("role.starting", "role.ready"),
    ((Side.HOST, "source"), Way.IO): ("source.requests.received", "source.thread.working", "source.finished"),
    ((Side.HOST, "source"), Way.BIRTH): ("role.starting", "role.ready"),
    ((Side.HOST, "session"), Way.RESET): ("session.announcing",),
    ((Side.HOST, "session"), Way.BIRTH): ("role.starting", "role.ready"),
    ((Side.HOST, "watchdog"), Way.DEATH): ("watchdog.ordering",),
    ((Side.HOST, "spawner"), Way.DEATH): ("spawner.forked",),
}
_DIES = {Side.GADGET: "queue", Side.HOST: "source"}  # for Way.DEATH: whose death the supervision sees


def stages(roles: list[Key]) -> list[Stage]:
    """Every stage of these roles. Of several queues or sources only the first: one is as good as the other."""
    first: dict[Key, str] = {}
    for side, role in roles:
        first.setdefault((side, kind_of(role)), role)
    return [
        Stage(key[0], first[key], point, way, first[key[0], _DIES[key[0]]] if way is Way.DEATH else "")
        for (key, way), names in POINTS.items()
        for point in names
    ]


def killed(event: "Event | At", running: Iterable[Key] = ()) -> set[Key]:
    """Whose process is another after this event. A spawner's twin takes its place, and another takes the twin's."""
    match event:
        case At(stage, None):
            gone = stage.dead() | {(stage.side, stage.role)}
        case At(stage, Kill() | Terminate() | WholeSide() as other):
            gone = stage.dead() | killed(other, running)
        case At(stage, _):
            gone = stage.dead()
        case Kill(side, role) | Terminate(side, role):
            gone = {(side, role)}
        case WholeSide(side):
            gone = {key for key in running if key[0] is side}
        case _:
            gone = set()
    return gone | {(side, "twin") for side, role in gone if role == "spawner"}
