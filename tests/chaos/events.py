"""The events of the fault table as values: what strikes whom. `strike` does it, and returns when it was done."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from bus.runtime import Runtime, Side, living
from common import limits
from host.usb.usbfs import UsbFs
from tests.chaos.sleep import freeze_tasks, suspend_bus
from tools.supervise.launch import all_living, await_deaths, kill

OUT_S = 0.3  # how long a cable stays out
STOPPED_S = 0.5  # how long a stopped process sleeps: shorter than the watchdog's patience


Key = tuple[Side, str]  # a role of a side


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
        os.kill(pid_of(self.side, self.role), signal.SIGKILL)


@dataclass(frozen=True)
class Terminate:
    """SIGTERM, as somebody with a process list sends it: the role drains, leaves, and is started again."""

    side: Side
    role: str

    def __str__(self) -> str:
        return f"SIGTERM {self.side} {kind_of(self.role)}"

    def strike(self) -> None:
        os.kill(pid_of(self.side, self.role), signal.SIGTERM)


@dataclass(frozen=True)
class WholeSide:
    """kill -9 of every process of a side, and then the command that brings it up again."""

    side: Side

    def __str__(self) -> str:
        return f"kill -9 the whole {self.side} side"

    def strike(self) -> None:
        dead = all_living(Runtime(self.side))
        kill(dead)
        if not await_deaths(dead, limits.DEATH_S):
            raise RuntimeError(f"of {self.side} not all are dead {limits.DEATH_S:g} s after kill -9: {dead}")
        bring_up[0](self.side)


@dataclass(frozen=True)
class Stop:
    """SIGSTOP, and SIGCONT after STOPPED_S."""

    side: Side
    role: str

    def __str__(self) -> str:
        return f"SIGSTOP {self.side} {kind_of(self.role)}"

    def strike(self) -> None:
        pid = pid_of(self.side, self.role)
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
        cable[0].cut(self.cut)


class Sleep(Enum):
    """What is put to sleep for a moment."""

    FREEZER = "freezer"  # every task of the machine (power/pm_test ends it after 5 s)
    ROOT_HUB = "root hub"  # the USB device and its root hub, as when a laptop's lid is closed


class Cable(Protocol):
    """Who has a hand on it, and on what can sleep at its ends."""

    sleeps: tuple[Sleep, ...]  # what this run may put to sleep

    def cut(self, cut: Cut) -> None:
        """And let it come back: returns when both were done."""

    def sleep(self, sleep: Sleep) -> None:
        """And wake: returns when both were done. RuntimeError if it did not sleep."""


class KernelCable:
    """Of a dummy controller, by sysfs, configfs and usbfs."""

    sleeps = tuple(Sleep)

    def cut(self, cut: Cut) -> None:
        if cut is Cut.UNBIND:
            [tree] = Path("/sys/kernel/config/usb_gadget").glob("*")
            udc = (tree / "UDC").read_text().strip()
            (tree / "UDC").write_text("\n")
            time.sleep(OUT_S)  # the fault itself
            (tree / "UDC").write_text(udc)
            return
        device = _device()
        if cut is Cut.DEAUTHORIZE:
            (device / "authorized").write_text("0")
            time.sleep(OUT_S)
            (device / "authorized").write_text("1")
            return
        node = UsbFs(int((device / "busnum").read_text()), int((device / "devnum").read_text()))
        try:
            node.reset()
        finally:
            node.close()

    def sleep(self, sleep: Sleep) -> None:
        if sleep is Sleep.FREEZER:
            print(f"freezer: {freeze_tasks()}", flush=True)
        else:
            suspend_bus([record.pid for record in all_living(Runtime(Side.HOST))], _device())


cable: list[Cable] = [KernelCable()]  # the one of this run; a native run puts its own here
bring_up: list[Callable[[Side], None]] = []  # of this run: a side that is dead as a whole


@dataclass(frozen=True)
class Suspend:
    """Both sides are on one machine here, so its own suspend is the freezer's part of one."""

    sleep: Sleep

    def __str__(self) -> str:
        return f"suspend, {self.sleep.value}"

    def strike(self) -> None:
        cable[0].sleep(self.sleep)


Event = Kill | Terminate | Stop | WholeSide | Unplug | Suspend


def kind_of(role: str) -> str:
    """`queue.4feb` is a queue."""
    return role.partition(".")[0]


def pid_of(side: Side, role: str) -> int:
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
