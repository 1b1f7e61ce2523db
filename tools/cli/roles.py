"""`replug restart|kill|log ROLE`: things done to one role of a running side."""

import sys
import time

from bus.control import ask
from bus.role import WATCHDOG
from bus.runtime import Runtime, recorded_roles
from common import limits
from common.errors import Exit, Gone, Refused
from tools.cli.side import find, processes, say

_LOOK_S = 0.02


def replace(how: str, side: str | None, instance: str, role: str) -> int:
    """`restart` or `kill` it, and wait until its successor is ready."""
    runtime = find(side, instance)
    try:
        before = ask(runtime, WATCHDOG, how, {"role": role})
    except Gone as error:
        raise Refused(f"{how} {role}: {error}: nothing was done", Exit.DOWN) from None
    deadline = time.monotonic() + limits.DRAIN_S + limits.DEATH_S + limits.READY_S
    while time.monotonic() < deadline:
        row = _row(runtime, role)
        if row is not None and row["generation"] != before["generation"] and row["state"] == "running":
            pause = f", pause {row['pause_ms']} ms" if row["pause_ms"] is not None else ""
            say(f"{role}: {how}ed: pid {before['pid']} is now {row['pid']}{pause}")
            return Exit.DONE
        if row is not None and row["state"] in ("failed", "stuck"):
            raise Refused(f"{role} is {row['state']}: {row['reason']}", Exit.FAULT)
        time.sleep(_LOOK_S)
    raise Refused(f"{role}: no successor is ready: see 'replug log {role}'", Exit.FAULT)


def _row(runtime: Runtime, role: str) -> dict[str, object] | None:
    try:
        rows = processes(runtime)["processes"]
    except Gone:
        return None  # it may be the watchdog that is replaced
    return next((row for row in rows if row["role"] == role), None)


def log(side: str | None, instance: str, role: str) -> int:
    """What the role's log still has, older part first."""
    runtime = find(side, instance)
    path = runtime.log_path(role) if role in recorded_roles(runtime) else None
    if path is None:
        raise Refused(f"{role}: no such role here: the roles are {', '.join(recorded_roles(runtime))}")
    for part in (path.with_name(f"{path.name}.1"), path, path.with_suffix(".err")):
        if part.exists():
            sys.stdout.write(part.read_text(errors="replace"))
    return Exit.DONE
