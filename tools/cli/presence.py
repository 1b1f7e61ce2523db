"""Who of a side's processes is silent, since when and why: seen from outside, so that it can be told of anybody.

Its own answer is the best sign that a process is well. What is left of one that does not answer is its last sign of
life (the time of its record) and what the kernel says it does.
"""

from typing import Any

from bus.runtime import ProcessRecord, Runtime, last_sign, living, run_state
from common.errors import Gone

DEAF = ("spawner", "twin")  # they fork, and must not have ZeroMQ: only a stop of theirs is seen
_WHY = {
    "T": "stopped by a signal",
    "t": "stopped by a debugger",
    "D": "waits in the kernel",
    "": "no process: it is being replaced",
}
_BUSY = "busy, or it hangs"
_SIGNLESS = ("twin",)  # dormant: it gives no signs of life


def stopped(record: ProcessRecord | None) -> bool:
    return record is not None and run_state(record.pid) in ("T", "t")


def hopeless(runtime: Runtime, asked: ProcessRecord | None) -> bool:
    """No answer will come of it, however long one waits: it is dead, or stopped."""
    return asked is None or living(runtime, asked.role) != asked or stopped(asked)


def with_answer(runtime: Runtime, row: dict[str, Any], answers: dict[str, Any]) -> dict[str, Any]:
    """`row` with `answers`; if that is false of one that should be running, with why and since when as well."""
    role = row["role"]
    if row["state"] != "running" or (role not in answers and role not in DEAF):
        return row
    if role in DEAF:
        silent = stopped(living(runtime, role))
    else:
        silent = isinstance(answers[role], Gone)
        row = {**row, "answers": not silent}
    if not silent:
        return row
    record = living(runtime, role)
    why = _WHY.get(run_state(record.pid) if record is not None else "", _BUSY)
    sign = None if role in _SIGNLESS else last_sign(runtime, role)
    since = {} if sign is None else {"silent_since": sign.isoformat(timespec="milliseconds")}
    return {**row, "answers": False, **since, "reason": why}


def works(row: dict[str, Any]) -> bool:
    return row["state"] == "running" and row.get("answers") is not False
