"""`replug host eject [NAME]`: nothing more is acknowledged, everything is flushed, and it is said when it is safe.

Each step waits for the one before: the gadget stops sending and has every answer; the sources flush; the gadget learns
that nothing is left to lose. Killed or said again at any point it goes on where it is; an ejected export stays so until
`host serve` ends.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bus.control import ask
from bus.runtime import Runtime, Side, check_name
from common.errors import Exit, Gone, Refused
from tools.cli.side import say
from tools.cli.waiting import Waiting
from tools.cli.where import exists

_DEADLINE_S = 60.0  # for each step: a slow disk's cache is larger than one would think
_LOOK_S = 0.05
_ANSWER_S = 2.0


def eject(instance: str, names: list[str]) -> int:
    """Refused (1) if an export has failed or a step does not come through: it is not safe then."""
    runtime = Runtime(Side.HOST, check_name(instance, "instance name"))
    if not exists(runtime):
        raise Refused(f"host eject: no host side runs here as instance {instance!r}: nothing to do", Exit.DOWN)
    for name in settle(runtime, names):
        say(f"{name}: ejected, everything acknowledged is on stable storage")
    served = [export for export in _session(runtime)["exports"] if not export["reason"].startswith("ejected")]
    if served:
        say(f"still served: {', '.join(export['name'] for export in served)}")
    else:
        say("it is safe to unplug the gadget or to power this machine off")
    return Exit.DONE


def settle(runtime: Runtime, names: list[str]) -> list[str]:
    """Have these exports (none: all) ejected and flushed, and the gadget know it. Returns their names."""
    ejected: list[str] = _await("the session", lambda: _asked(runtime, "session", "eject", {"names": names}))
    _await("the gadget to stop sending", lambda: _told(runtime))
    for name in ejected:
        _await(f"{name}: the last I/O of its source to end", lambda name=name: _idle(runtime, name))  # type: ignore[misc]
        _flush(runtime, name)
    _await("the session", lambda: _asked(runtime, "session", "flushed", {"names": ejected}))
    _await("the gadget to hear that all is flushed", lambda: _told(runtime))
    return ejected


def _asked(runtime: Runtime, role: str, method: str, arguments: dict[str, Any] | None = None) -> Any:
    """None while it is being replaced."""
    try:
        return ask(runtime, role, method, arguments, _ANSWER_S)
    except Gone:
        return None


def _session(runtime: Runtime) -> dict[str, Any]:
    status: dict[str, Any] = _await("the session", lambda: _asked(runtime, "session", "status"))
    return status


def _told(runtime: Runtime) -> bool:
    return bool(_session(runtime)["ejection_told"])


def _source(runtime: Runtime, name: str) -> dict[str, Any] | None:
    status: dict[str, Any] | None = _asked(runtime, f"source.{name}", "status")
    if status is not None and status["state"] == "failed":
        raise Refused(f"{name}: {status['reason']}: it is not safe to power off: check its disk", Exit.FAULT)
    return status


def _idle(runtime: Runtime, name: str) -> bool:
    status = _source(runtime, name)
    return status is not None and status["in_flight"] == 0


def _flush(runtime: Runtime, name: str) -> None:
    """An fdatasync that succeeded, in one incarnation of the source."""
    asked: dict[str, int] | None = None

    def flushed() -> bool:
        nonlocal asked
        status = _source(runtime, name)
        if status is None:
            return False
        if asked is None or status["generation"] != asked["generation"]:
            asked = _asked(runtime, f"source.{name}", "flush")
            return False
        return bool(status["flushed"] >= asked["asked"])

    _await(f"{name}: its source to flush", flushed)


def _await(what: str, look: Callable[[], Any]) -> Any:
    deadline, waiting = time.monotonic() + _DEADLINE_S, Waiting()
    while not (value := look()):
        if line := waiting.line(what, time.monotonic(), _unwritten() if "flush" in what else None):
            say(line)
        if time.monotonic() > deadline:
            raise Refused(f"host eject: waited {_DEADLINE_S:g} s for {what}: it is not safe: try again", Exit.FAULT)
        time.sleep(_LOOK_S)
    return value


def _unwritten() -> int | None:
    return unwritten_bytes(Path("/proc/meminfo").read_text())


def unwritten_bytes(meminfo: str) -> int | None:
    """Dirty and under writeback (proc_meminfo(5)), of all files here: what an fdatasync waits for is a part of it."""
    found = re.findall(r"^(?:Dirty|Writeback): +(\d+) kB$", meminfo, re.MULTILINE)
    return sum(map(int, found)) << 10 if found else None
