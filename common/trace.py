"""Kill points: named places in the roles where a test may have the process killed, stopped or delayed.

`trace.point("queue.requests.taken")` is one call of a builtin unless this process is armed: each I/O passes twenty of
them. (So nobody imports `point` itself, which is another function then.) It is armed by the `trace` argument a test's
plan gives a role (for points of its start-up), or by the control call `trace` (for the incarnation that lives now). No
file is read unless armed: a respawn must not touch the disk that may be the one we serve.

The same points, recorded with the time, say where the time of one I/O goes (`replug bench --profile`).
"""

import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from common.errors import Refused

_LONGEST_DELAY_MS = 60_000  # a delay is to be outlived by the test that asked for it
RECORDS = 1500  # points that a recording holds: what one envelope carries


class Act(StrEnum):
    KILL = "kill"  # SIGKILL to ourselves: nothing after the point is done
    STOP = "stop"  # SIGSTOP: whoever awaits the record may cut the link now, then SIGCONT
    DELAY = "delay"
    TELL = "tell"  # only the record


@dataclass(frozen=True)
class Armed:
    """What happens at a point. `once` names a file that is removed by the one who acts: successors then do nothing."""

    name: str
    act: Act
    nth: int = 1
    tell: str = ""
    once: str = ""
    delay_ms: int = 0

    @staticmethod
    def of(fields: Mapping[str, object]) -> "Armed":
        """Checked: it comes from a plan or a control call. Refused with one line."""
        known = {"name", "act", "nth", "tell", "once", "delay_ms"}
        name, nth, delay_ms = fields.get("name"), fields.get("nth", 1), fields.get("delay_ms", 0)
        tell, once = fields.get("tell", ""), fields.get("once", "")
        if (
            fields.keys() <= known
            and isinstance(name, str)
            and name
            and type(nth) is int
            and nth >= 1
            and type(delay_ms) is int
            and 0 <= delay_ms <= _LONGEST_DELAY_MS
            and isinstance(tell, str)
            and isinstance(once, str)
        ):
            with suppress(ValueError):
                return Armed(name, Act(str(fields.get("act"))), nth, tell, once, delay_ms)
        raise Refused(f"{dict(fields)!r}: not a kill point: needs name and act, may have nth, tell, once, delay_ms")


_nobody: Callable[[str], object] = len  # any builtin of one argument; the interpreter has an instruction for this one
point: Callable[[str], object] = _nobody
"""A step of a role. Called in its loop's thread or, where the name says so, in a worker's."""
_armed: Armed | None = None
_left = 0
_records: list[tuple[str, int]] = []


def arm(fields: Mapping[str, object] | None) -> None:
    """Arm this process, replacing what was armed; None disarms."""
    global _armed, _left, point
    _armed = None if fields is None else Armed.of(fields)
    _left, point = _armed.nth if _armed else 0, _reached if _armed else _nobody


def record(on: bool) -> list[tuple[str, int]]:
    """Begin to record, or end it and return what was: each point's name and CLOCK_MONOTONIC in ns. Disarms."""
    global point, _records
    done, _records = _records, []
    point = _recorded if on else _nobody
    return done


def _recorded(name: str) -> None:
    if len(_records) < RECORDS:
        _records.append((name, time.monotonic_ns()))


def _reached(name: str) -> None:
    global _armed, _left, point
    armed = _armed
    if armed is None or name != armed.name:
        return
    _left -= 1
    if _left > 0:
        return
    _armed, point = None, _nobody  # before the act: a stopped process that goes on must not stop again
    if armed.once:
        try:
            os.unlink(armed.once)
        except FileNotFoundError:
            return
    if armed.tell:
        _tell(armed)
    if armed.act is Act.KILL:
        os.kill(os.getpid(), signal.SIGKILL)
    elif armed.act is Act.STOP:
        os.kill(os.getpid(), signal.SIGSTOP)
    elif armed.act is Act.DELAY:
        time.sleep(armed.delay_ms / 1000)


def _tell(armed: Armed) -> None:
    """One datagram, `name pid`, sent before the act: the only proof that the point was reached. Nobody there: go on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as end, suppress(OSError):
        end.sendto(f"{armed.name} {os.getpid()}".encode(), armed.tell)
