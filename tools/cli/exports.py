"""`replug host add SOURCE...` and `replug host remove NAME...`: another set of exports while the others go on.

A new source runs before the gadget hears of it; a removed one is ejected and flushed before it ends, so that nothing
acknowledged is lost. Each step may be said again. The session keeps the set (host.session.served).
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from bus.control import ask
from bus.runtime import Runtime, Side, check_name
from common import limits
from common.errors import Exit, Gone, Refused
from common.units import show_size
from tools.cli.eject import settle
from tools.cli.side import processes, say
from tools.cli.sources import Source, look_at
from tools.cli.waiting import Waiting
from tools.cli.where import exists

_LOOK_S = 0.05
_DEADLINE_S = limits.READY_S + limits.SETTLE_S


def add(instance: str, arguments: Sequence[str], block_size: int | None, read_only: bool) -> int:
    """Serve these too. Refused (3) if one is served already; of a failure nothing is left but what was said before."""
    runtime = _running(instance, "host add")
    present = [Source(**args) for args in _await("the session", lambda: _ask(runtime, "sources"))]
    sources = look_at(arguments, block_size, read_only, present)
    for source in sources:
        _await("the session", lambda source=source: _ask(runtime, "add", {"source": source.role_args()}, True))  # type: ignore[misc]
        _await(f"source.{source.name} to run", lambda source=source: _runs(runtime, source))  # type: ignore[misc]
        mode = ", read-only" if source.read_only else ""
        size = show_size(source.size_bytes)
        say(f"serving {source.name}: {source.path}, {size} in blocks of {source.block_size}{mode}")
    return Exit.DONE


def remove(instance: str, names: Sequence[str]) -> int:
    """Refused (1) if a source cannot flush; the export stays ejected then. The gadget's device goes with its users."""
    runtime = _running(instance, "host remove")
    present = [args["name"] for args in _await("the session", lambda: _ask(runtime, "sources"))]
    if unknown := [name for name in names if name not in present]:
        raise Refused(f"{unknown[0]}: not served here: there are: {', '.join(present)}")
    if set(names) >= set(present):
        raise Refused("host remove: nothing would be left: 'replug host eject' and 'replug host down' end it")
    for name in dict.fromkeys(names):
        settle(runtime, [name])
        _await("the session", lambda name=name: _ask(runtime, "remove", {"name": name}, True))  # type: ignore[misc]
        _await("the gadget to hear of it", lambda name=name: _told(runtime, name))  # type: ignore[misc]
        say(f"{name}: removed, everything acknowledged is on stable storage")
    return Exit.DONE


def _running(instance: str, command: str) -> Runtime:
    runtime = Runtime(Side.HOST, check_name(instance, "instance name"))
    if not exists(runtime):
        raise Refused(f"{command}: no host side runs here as instance {instance!r}: use 'replug host serve'", Exit.DOWN)
    return runtime


def _ask(runtime: Runtime, method: str, arguments: dict[str, Any] | None = None, done: Any = None) -> Any:
    """None while the session is being replaced; `done` in the place of an empty answer."""
    try:
        return ask(runtime, "session", method, arguments, 2.0) or done
    except Gone:
        return None


def _runs(runtime: Runtime, source: Source) -> bool:
    try:
        rows = {row["role"]: row for row in processes(runtime, 1.0)["processes"]}
    except Gone:
        return False
    row = rows.get(f"source.{source.name}", {})
    if row.get("state") in ("failed", "stuck"):
        raise Refused(f"{source.name}: {row.get('reason') or row['state']}", Exit.FAULT)
    return bool(row.get("state") == "running")


def _told(runtime: Runtime, name: str) -> bool:
    """Without a gadget nobody has to be told now: it is when one comes."""
    status = _ask(runtime, "status")
    if status is None:
        return False
    return name not in status["removing"] or status["stage"] in ("searching", "attaching")


def _await(what: str, look: Callable[[], Any]) -> Any:
    deadline, waiting = time.monotonic() + _DEADLINE_S, Waiting()
    while not (value := look()):
        if line := waiting.line(what, time.monotonic()):
            say(line)
        if time.monotonic() > deadline:
            raise Refused(f"waited {_DEADLINE_S:g} s for {what}: say it again", Exit.FAULT)
        time.sleep(_LOOK_S)
    return value
