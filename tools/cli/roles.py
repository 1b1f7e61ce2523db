"""`replug restart|drain|kill ROLE`: things done to one role of a running side. Also what top does at a key."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bus.control import ask
from bus.role import WATCHDOG
from bus.runtime import Runtime, living
from common import limits
from common.errors import Exit, Gone, Refused
from common.units import show_ms
from tools.cli.pause import await_io
from tools.cli.side import find, processes, say
from tools.cli.waiting import Waiting
from tools.cli.where import SUPERVISORS
from tools.supervise.launch import kill

_LOOK_S = 0.02
_ANSWER_S = 0.5  # of one look at the watchdog
_DONE = {"restart": "restarted", "drain": "drained", "kill": "killed"}


@dataclass(frozen=True)
class Replacement:
    """`told`: what happened, for people. `waited_ms`: how long I/O waited, None if nobody here can tell."""

    told: str
    waited_ms: float | None


def replace(how: str, side: str | None, instance: str, role: str) -> int:
    """`restart`, `drain` or `kill` it, and wait until its successor is ready."""
    say(replaced(find(side, instance), how, role).told)
    return Exit.DONE


def replaced(runtime: Runtime, how: str, role: str, show: Callable[[str], None] = say) -> Replacement:
    """Do it. Refused with a status if there is no successor, or a drain became a kill."""
    began = time.monotonic()
    before = _end(runtime, how, role)
    deadline, waiting = began + limits.DRAIN_S + limits.DEATH_S + limits.READY_S, Waiting()
    while time.monotonic() < deadline:
        row = _row(runtime, role)
        if row is not None and row["generation"] != before["generation"] and row["state"] == "running":
            told = _told(how, role, before, row, time.monotonic() - began)
            pause = await_io(runtime, role, row["pause_ms"], began, show)
            return Replacement(told + pause.told(), pause.waited_ms)
        if row is not None and row["state"] in ("failed", "stuck"):
            raise Refused(f"{role} is {row['state']}: {row['reason']}", Exit.FAULT)
        stage = f"{role} ({row['phase'] if row and row.get('phase') else 'it or the watchdog is being replaced'})"
        if line := waiting.line(stage, time.monotonic()):
            show(line)
        time.sleep(_LOOK_S)
    raise Refused(f"{role}: no successor is ready: see 'replug log {role}'", Exit.FAULT)


def _end(runtime: Runtime, how: str, role: str) -> dict[str, Any]:
    """Ask the watchdog; its own SIGKILL, and that of its spawner, come from here. Returns who was there before."""
    record = living(runtime, role) if how == "kill" and role in SUPERVISORS else None
    if record is not None:
        kill([record])
        return {"pid": record.pid, "generation": record.generation}
    try:
        before: dict[str, Any] = ask(runtime, WATCHDOG, "kill" if how == "kill" else "restart", {"role": role})
    except Gone as error:
        raise Refused(f"{how} {role}: {error}: nothing was done", Exit.DOWN) from None
    return before


def _told(how: str, role: str, before: dict[str, Any], row: dict[str, Any], took_s: float) -> str:
    if how == "drain" and "killed" in row["last_exit"]:
        why = f"it had to be killed after {limits.DRAIN_S:g} s: pid {before['pid']} is now {row['pid']}"
        raise Refused(f"{role}: not drained: {why}: see 'replug log {role}'", Exit.FAULT)
    pause = f", paused {row['pause_ms']} ms" if row["pause_ms"] is not None else ""
    return f"{role}: {_DONE[how]}: pid {before['pid']} is now {row['pid']}{pause}, ready after {show_ms(took_s)}"


def _row(runtime: Runtime, role: str) -> dict[str, Any] | None:
    try:
        rows = processes(runtime, _ANSWER_S)["processes"]  # a call that went to the dead one is said again soon
    except Gone:
        return None  # it may be the watchdog that is replaced
    return next((row for row in rows if row["role"] == role), None)
