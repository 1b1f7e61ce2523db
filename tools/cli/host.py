"""`replug host serve` and `replug host down`."""

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bus.control import ask
from bus.runtime import Runtime, Side, check_name
from common import limits
from common.errors import Exit, Gone, Refused, ReplugError
from common.units import show_ms, show_size
from host.session.served import served_path
from tools.cli.claim import bringing_up, clear_stale
from tools.cli.side import adopt, bring_up, processes, refuse_second, say, take_down
from tools.cli.sources import Source, look_at
from tools.supervise.launch import all_living, await_deaths, kill, supervised
from tools.supervise.memory import memory_path
from tools.supervise.plan import host_plan

_LOOK_S = 1.0  # each look is two calls, which cost a slow machine more than they tell
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class How:
    """`background`: return when all is ready. `adopt_it`: if it runs already that is success."""

    background: bool = False
    adopt_it: bool = False


def serve(
    instance: str,
    arguments: Sequence[str],
    block_size: int | None,
    read_only: bool,
    gadget: str | None,
    how: How = How(),
) -> int:
    """Serve until a signal ends it; tells what changes meanwhile. Nothing of it is left afterwards."""
    runtime = Runtime(Side.HOST, check_name(instance, "instance name"))
    with bringing_up(runtime, "host serve"):
        if how.adopt_it and adopt(runtime):
            say("host serves already")
            return Exit.DONE
        refuse_second(runtime, "host serve")
        _end_orphans(runtime)
        # The set of before, with what was added to it, ended with its processes.
        for path in (memory_path(runtime), served_path(runtime)):
            path.unlink(missing_ok=True)
        sources = look_at(arguments, block_size, read_only)
        for number in _ENDS[1:]:
            signal.signal(number, _interrupt)
        session_args = {"gadget": gadget, "exports": [source.role_args() for source in sources]}
        spawner = bring_up(host_plan(instance, [s.role_args() for s in sources], session_args), runtime)
    if not how.background:
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)  # from here on they are waited for
    _announce(sources, "'replug host down' ends it" if how.background else "Ctrl-C ends it")
    if how.background:
        return Exit.DONE
    news = News(runtime)
    while runtime.root.is_dir():
        for line in news.look():
            print(line, flush=True)
        spawner.poll()  # ours to reap, if it was killed
        got = signal.sigtimedwait(_ENDS, _LOOK_S)
        if got is not None:
            say(f"{signal.Signals(got.si_signo).name}: going down")
            take_down(runtime)
            break
    spawner.poll()
    say("host is down")
    return Exit.DONE


def down(instance: str, if_running: bool = False) -> int:
    """End a `host serve` from elsewhere, or clear away what a dead one left."""
    runtime = Runtime(Side.HOST, check_name(instance, "instance name"))
    if if_running and not supervised(runtime):
        say("host does not run")
        return Exit.DONE
    clear_stale(runtime)
    if not runtime.root.is_dir():
        raise Refused(f"host down: no host side runs here as instance {instance!r}: nothing to do", Exit.DOWN)
    take_down(runtime)
    say("host is down")
    return Exit.DONE


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _end_orphans(runtime: Runtime) -> None:
    """Roles whose supervision is dead hold their files' locks; there is nothing in them that a successor lacks."""
    orphans = all_living(runtime)
    kill(orphans)
    if not await_deaths(orphans, limits.DEATH_S):
        raise Refused(f"host serve: a process of a dead host side does not die: {all_living(runtime)}", Exit.FAULT)


def _announce(sources: list[Source], end: str) -> None:
    for source in sources:
        mode = ", read-only" if source.read_only else ""
        size = show_size(source.size_bytes)
        say(f"serving {source.name}: {source.path}, {size} in blocks of {source.block_size}{mode}")
    say(end)


class News:
    """What has changed since the last look: deaths and starts of roles, and the link."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._rows: dict[str, dict[str, Any]] = {}
        self._link = ""

    def look(self) -> list[str]:
        """Lines for people, each with the time before it."""
        now = time.strftime("%H:%M:%S")
        return [f"{now} {line}" for line in [*self._processes(), *self._link_state()]]

    def _processes(self) -> list[str]:
        try:
            rows = {row["role"]: row for row in processes(self._runtime, 1.0)["processes"]}
        except (Gone, ReplugError):
            return []  # the watchdog is being replaced: the next look tells
        before, self._rows = self._rows, rows
        return [line for role, row in rows.items() if (line := told(before.get(role), row))]

    def _link_state(self) -> list[str]:
        try:
            status = ask(self._runtime, "session", "status", timeout_s=1.0)
        except (Gone, ReplugError):
            return []
        link = status.get("link", {}) if isinstance(status, dict) else {}
        text = str(link.get("state", "")) + (f": {link['reason']}" if link.get("reason") else "")
        if not text or text == self._link:
            return []
        self._link = text
        return [f"link {text}"]


def told(before: dict[str, Any] | None, row: dict[str, Any]) -> str | None:
    """One line about a role that is another than before, or None."""
    if before is None:
        return None
    if before["generation"] != row["generation"] and before["generation"] and row["generation"]:
        pause = f", respawned in {show_ms(row['pause_ms'] / 1000)}" if row["pause_ms"] is not None else ", respawned"
        return f"{row['role']} {row['last_exit'] or 'replaced'}{pause}"
    if before["state"] != row["state"] and row["state"] in ("failed", "stuck"):
        return f"{row['role']} {row['state']}: {row.get('reason', '')}"
    return None
