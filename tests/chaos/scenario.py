"""The events of the fault table as values: what strikes whom, drawn from a seed, and struck. One or two at a time."""

import os
import random
import shutil
import signal
import socket
import tempfile
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from bus.control import ask
from bus.runtime import Runtime, Side, living
from host.usb.usbfs import UsbFs

OUT_S = 0.3  # how long a cable stays out
REACH_S = 30.0  # for a role to come to a point that every I/O passes; the guest stalls
STOPPED_S = 0.5  # how long a stopped process sleeps: shorter than the watchdog's patience


class Cut(Enum):
    """Ways to lose the link, and to get it back."""

    UNBIND = "UDC unbound and bound"
    DEAUTHORIZE = "authorized 0 and 1"
    RESET = "USB reset"


@dataclass(frozen=True)
class Kill:
    """kill -9."""

    side: Side
    role: str

    def __str__(self) -> str:
        return f"kill -9 {self.side} {kind_of(self.role)}"

    def strike(self) -> None:
        os.kill(_pid(self.side, self.role), signal.SIGKILL)


@dataclass(frozen=True)
class Stop:
    """SIGSTOP, and SIGCONT after STOPPED_S."""

    side: Side
    role: str

    def __str__(self) -> str:
        return f"SIGSTOP {self.side} {kind_of(self.role)}"

    def strike(self) -> None:
        pid = _pid(self.side, self.role)
        os.kill(pid, signal.SIGSTOP)
        time.sleep(STOPPED_S)  # the fault itself
        os.kill(pid, signal.SIGCONT)


@dataclass(frozen=True)
class Unplug:
    """The link is lost for a moment."""

    cut: Cut

    def __str__(self) -> str:
        return self.cut.value

    def strike(self) -> None:
        if self.cut is Cut.UNBIND:
            [tree] = Path("/sys/kernel/config/usb_gadget").glob("*")
            udc = (tree / "UDC").read_text().strip()
            (tree / "UDC").write_text("\n")
            time.sleep(OUT_S)  # the fault itself
            (tree / "UDC").write_text(udc)
            return
        device = _device()
        if self.cut is Cut.DEAUTHORIZE:
            (device / "authorized").write_text("0")
            time.sleep(OUT_S)
            (device / "authorized").write_text("1")
            return
        node = UsbFs(int((device / "busnum").read_text()), int((device / "devnum").read_text()))
        try:
            node.reset()
        finally:
            node.close()


# Steps of an I/O, and of a hand-shake that a reset of the device begins: where a kill is asked for (common/trace.py).
POINTS: dict[tuple[Side, str], tuple[str, ...]] = {
    (Side.GADGET, "queue"): ("queue.request.taken", "queue.requests.sent", "queue.committing"),
    (Side.GADGET, "usb"): (
        "usb.request.sending",
        "usb.transfers.submitted",
        "usb.answer.arrived",
        "usb.completions.sending",
    ),
    (Side.HOST, "usb"): ("usb.request.arrived", "usb.payload.taken", "usb.requests.forwarding", "usb.answering"),
    (Side.HOST, "source"): ("source.requests.received", "source.thread.working", "source.finished"),
}
RESET_POINTS: dict[tuple[Side, str], tuple[str, ...]] = {
    (Side.GADGET, "usb"): ("usb.configured",),
    (Side.GADGET, "session"): ("session.configuring", "session.saved"),
    (Side.HOST, "usb"): ("usb.epoch.begun",),
    (Side.HOST, "session"): ("session.announcing",),
}


@dataclass(frozen=True)
class KillAt:
    """kill -9 at the next time that the role comes to `point`; with `reset` the device is reset to bring it there."""

    side: Side
    role: str
    point: str
    reset: bool

    def __str__(self) -> str:
        return f"kill -9 {self.side} {kind_of(self.role)} at {self.point}"

    def strike(self) -> None:
        """Returns when the point was reached; RuntimeError if it never is."""
        place = Path(tempfile.mkdtemp()) / "reached"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reached:
            reached.bind(os.fspath(place))
            reached.settimeout(REACH_S)
            arming = {"name": self.point, "act": "kill", "tell": os.fspath(place)}
            ask(Runtime(self.side), self.role, "trace", arming)
            if self.reset:
                Unplug(Cut.RESET).strike()
            try:
                reached.recv(200)
            except TimeoutError:
                raise RuntimeError(f"{self}: not reached within {REACH_S:g} s") from None
        shutil.rmtree(place.parent)


Event = Kill | KillAt | Stop | Unplug


def points(roles: list[tuple[Side, str]]) -> list[KillAt]:
    """Every kill point of these roles. Of several queues or sources only the first: one is as good as the other."""
    found: dict[tuple[Side, str], str] = {}
    for side, role in roles:
        found.setdefault((side, kind_of(role)), role)
    return [
        KillAt(key[0], found[key], point, reset)
        for table, reset in ((POINTS, False), (RESET_POINTS, True))
        for key, names in table.items()
        for point in names
    ]


def draw(choose: random.Random, roles: list[tuple[Side, str]]) -> tuple[Event, ...]:
    """One event, or, a third of the time, two: then a kill beside any other."""
    killable = [Kill(side, role) for side, role in roles]
    stoppable = [Stop(side, role) for side, role in roles if role not in ("watchdog", "spawner")]
    cuts = [Unplug(cut) for cut in Cut]
    pool: list[Event] = [*killable, *points(roles), *stoppable, *cuts, *cuts]
    first = choose.choice(pool)
    if choose.random() < 2 / 3:
        return (first,)
    return (first, choose.choice([kill for kill in killable if kill != first and not _same(kill, first)]))


def every(roles: list[tuple[Side, str]]) -> list[Event]:
    """Each event of the table once: of several queues or sources the first."""
    found: dict[tuple[Side, str], tuple[Side, str]] = {}
    for key in roles:
        found.setdefault((key[0], kind_of(key[1])), key)
    one_each = list(found.values())
    stops: list[Event] = [Stop(side, role) for side, role in one_each if role not in ("watchdog", "spawner")]
    return [*(Unplug(cut) for cut in Cut), *(Kill(*key) for key in one_each), *points(one_each), *stops]


def victims(events: tuple[Event, ...]) -> set[tuple[Side, str]]:
    """Whose process is another afterwards. A spawner's twin takes its place, and another takes the twin's."""
    killed = {(e.side, e.role) for e in events if isinstance(e, Kill | KillAt)}
    return killed | {(side, "twin") for side, role in killed if role == "spawner"}


def _same(kill: Kill, other: Event) -> bool:
    return isinstance(other, Stop | KillAt) and (kill.side, kill.role) == (other.side, other.role)


def kind_of(role: str) -> str:
    """`queue.4feb` is a queue."""
    return role.partition(".")[0]


def _pid(side: Side, role: str) -> int:
    record = living(Runtime(side), role)
    if record is None:
        raise RuntimeError(f"{side} {role} does not run: nothing to strike")
    return record.pid


def _device() -> Path:
    for interface in Path("/sys/bus/usb/devices").glob("*:*"):
        try:
            if (interface / "bInterfaceSubClass").read_text().strip() == "53":
                return interface.parent / interface.name.partition(":")[0]
        except OSError:
            continue
    raise RuntimeError("the gadget is not enumerated")
