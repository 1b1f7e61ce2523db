"""The events of the fault table as values: what strikes whom, drawn from a seed, and struck. One or two at a time."""

import os
import random
import signal
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from bus.runtime import Runtime, Side, living
from host.usb.usbfs import UsbFs

OUT_S = 0.3  # how long a cable stays out
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


Event = Kill | Stop | Unplug


def draw(choose: random.Random, roles: list[tuple[Side, str]]) -> tuple[Event, ...]:
    """One event, or, a third of the time, two: then a kill beside any other."""
    killable = [Kill(side, role) for side, role in roles]
    stoppable = [Stop(side, role) for side, role in roles if role not in ("watchdog", "spawner")]
    cuts = [Unplug(cut) for cut in Cut]
    pool: list[Event] = [*killable, *killable, *stoppable, *cuts, *cuts]
    first = choose.choice(pool)
    if choose.random() < 2 / 3:
        return (first,)
    return (first, choose.choice([kill for kill in killable if kill != first and not _same(kill, first)]))


def victims(events: tuple[Event, ...]) -> set[tuple[Side, str]]:
    """Whose process is another afterwards. A spawner's twin takes its place, and another takes the twin's."""
    killed = {(e.side, e.role) for e in events if isinstance(e, Kill)}
    return killed | {(side, "twin") for side, role in killed if role == "spawner"}


def _same(kill: Kill, other: Event) -> bool:
    return isinstance(other, Stop) and (kill.side, kill.role) == (other.side, other.role)


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
