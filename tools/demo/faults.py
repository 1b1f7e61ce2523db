"""The faults of the demo: what each does, and whom it kills (nobody, where it is the cable)."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bus.runtime import Runtime, Side, living

UNPLUGGED_S = 1.5  # how long the cable stays out: long enough to see that everything waits


@dataclass(frozen=True)
class Fault:
    """`strike` makes it happen and, for a cable, mends it. `victim` is (side, role) of the one process that dies.

    `heir` is the one that takes its place and its name, so that another takes its own: a spawner's twin.
    """

    title: str
    strike: Callable[[], None]
    victim: tuple[Side, str] | None = None
    held_s: float = 0.0
    heir: tuple[Side, str] | None = None


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def unbind_udc(tree: Path) -> Fault:
    """Pull the cable at the gadget's end: the UDC is unbound and bound again; the host sees a new device."""

    def strike() -> None:
        udc = (tree / "UDC").read_text().strip()
        _write(tree / "UDC", "\n")
        time.sleep(UNPLUGGED_S)  # the fault itself: a cable that is out for this long
        _write(tree / "UDC", udc)

    return Fault("cable out (UDC unbound)", strike, held_s=UNPLUGGED_S)


def deauthorize(find_device: Callable[[], Path]) -> Fault:
    """Pull the cable at the host's end: the host's kernel drops the device and takes it again."""

    def strike() -> None:
        device = find_device()
        _write(device / "authorized", "0")
        time.sleep(UNPLUGGED_S)
        _write(device / "authorized", "1")

    return Fault("cable out (authorized 0)", strike, held_s=UNPLUGGED_S)


def kill(side: Side, role: str, instance: str = "default") -> Fault:
    """kill -9 of one role."""

    def strike() -> None:
        record = living(Runtime(side, instance), role)
        if record is None:
            raise RuntimeError(f"{side} {role} does not run: nothing to kill")
        os.kill(record.pid, signal.SIGKILL)

    heir = (side, "twin") if role == "spawner" else None
    return Fault(f"kill -9 {side} {role}", strike, victim=(side, role), heir=heir)
