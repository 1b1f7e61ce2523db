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
    """`strike` makes it happen and, for a cable, mends it. `victims` are (side, role) whose process is another then.

    A spawner's twin takes its place and its name, and another takes the twin's: so both names change hands.
    """

    title: str
    strike: Callable[[], None]
    victims: tuple[tuple[Side, str], ...] = ()
    held_s: float = 0.0


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
    return kill_all([(side, role)], instance)


def kill_all(roles: list[tuple[Side, str]], instance: str = "default") -> Fault:
    """kill -9 of several roles, one right after the other."""

    def strike() -> None:
        for side, role in roles:
            record = living(Runtime(side, instance), role)
            if record is None:
                raise RuntimeError(f"{side} {role} does not run: nothing to kill")
            os.kill(record.pid, signal.SIGKILL)

    heirs = [(side, "twin") for side, role in roles if role == "spawner"]
    return Fault("kill -9 " + " and ".join(f"{side} {role}" for side, role in roles), strike, (*roles, *heirs))
