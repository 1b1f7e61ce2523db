"""`replug host serve` and `replug host down`."""

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from subprocess import Popen
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
class Wish:
    """One host side: what it serves, and to which gadget (None: any)."""

    instance: str
    sources: tuple[str, ...]
    block_size: int | None = None
    read_only: bool = False
    gadget: str | None = None
    metrics: str | None = None


@dataclass(frozen=True)
class How:
    """`background`: return when all is ready. `adopt_it`: if it runs already that is success."""

    background: bool = False
    adopt_it: bool = False


@dataclass
class Served:
    """A side that is up. `spawner` is ours to reap, if we started it."""

    wish: Wish
    runtime: Runtime
    spawner: "Popen[bytes] | None"
    sources: list[Source]
    news: "News"


def serve(wishes: Sequence[Wish], how: How) -> int:
    """Serve until a signal ends it; tells what changes meanwhile. Nothing of it is left afterwards.

    Several gadgets are several sides, each with processes of its own: all come up, or none stays.
    """
    _check_choices(wishes)
    for number in _ENDS:  # SIGINT too: a shell ignores it for what it starts in the background
        signal.signal(number, _interrupt)
    sides: list[Served] = []
    try:
        for wish in wishes:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDS)  # one that came meanwhile ends it here
            sides.append(_start(wish, how))
    except BaseException:
        for side in sides:
            if side.spawner is not None:
                take_down(side.runtime)
                side.spawner.poll()
        raise
    for side in sides:
        _announce(side)
    if how.background:
        for side in sides:
            named = f" --instance {side.wish.instance}" if side.wish.instance != "default" else ""
            say(f"'replug host down{named}' ends it")
        return Exit.DONE
    say("Ctrl-C ends it")
    _watch(sides)
    say("host is down")
    return Exit.DONE


def _start(wish: Wish, how: How) -> Served:
    """Bring one side up. Signals that end us are blocked afterwards, so that none comes before it is remembered."""
    runtime = Runtime(Side.HOST, check_name(wish.instance, "instance name"))
    with bringing_up(runtime, "host serve"):
        if how.adopt_it and adopt(runtime):
            signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
            return Served(wish, runtime, None, [], News(runtime))
        refuse_second(runtime, "host serve")
        _end_orphans(runtime)
        # The set of before, with what was added to it, ended with its processes.
        for path in (memory_path(runtime), served_path(runtime)):
            path.unlink(missing_ok=True)
        sources = look_at(wish.sources, wish.block_size, wish.read_only)
        exports = [source.role_args() for source in sources]
        session_args = {"gadget": wish.gadget, "exports": exports, "metrics": wish.metrics}
        spawner = bring_up(host_plan(wish.instance, exports, session_args), runtime)
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)  # it is up: from here on they are waited for
    return Served(wish, runtime, spawner, sources, News(runtime))


def _watch(sides: list[Served]) -> None:
    """Until a signal, or until all were ended from elsewhere."""
    several = len(sides) > 1
    while sides := [side for side in sides if side.runtime.root.is_dir()]:
        for side in sides:
            for line in side.news.look():
                print(f"{side.wish.instance}: {line}" if several else line, flush=True)
            if side.spawner is not None:
                side.spawner.poll()  # ours to reap, if it was killed
        got = signal.sigtimedwait(_ENDS, _LOOK_S)
        if got is not None:
            say(f"{signal.Signals(got.si_signo).name}: going down")
            for side in sides:
                take_down(side.runtime)
                if side.spawner is not None:
                    side.spawner.poll()
            return


def _check_choices(wishes: Sequence[Wish]) -> None:
    """Refused if two sides could mean one gadget: which of them got it would be chance."""
    chosen: dict[str | None, str] = {}
    for wish in wishes:
        other = chosen.setdefault(wish.gadget, wish.instance)
        if other is not wish.instance:
            what = f"the gadget {wish.gadget}" if wish.gadget else "any gadget"
            cure = "give each its own `gadget`: a serial number, id:VID:PID or port:1-2.3"
            raise Refused(f"host serve: {other} and {wish.instance} both take {what}: {cure}")
    if None in chosen and len(wishes) > 1:
        raise Refused(
            f"host serve: {chosen[None]} takes any gadget, also those of the others: give it its own `gadget`"
        )


def _named(wish: Wish) -> str:
    return "host" if wish.instance == "default" else f"host {wish.instance}"


def down(instances: Sequence[str], if_running: bool = False) -> int:
    """End a `host serve` from elsewhere, or clear away what a dead one left. Refused (5) if there is none of them."""
    ours = [Runtime(Side.HOST, check_name(instance, "instance name")) for instance in instances]
    for runtime in ours:
        clear_stale(runtime)
    there = [runtime for runtime in ours if (supervised(runtime) if if_running else runtime.root.is_dir())]
    if not there and not if_running:
        names = ", ".join(repr(instance) for instance in instances)
        raise Refused(f"host down: no host side runs here as instance {names}: nothing to do", Exit.DOWN)
    for runtime in there:
        take_down(runtime)
    say("host is down" if there else "host does not run")
    return Exit.DONE


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _end_orphans(runtime: Runtime) -> None:
    """Roles whose supervision is dead hold their files' locks; there is nothing in them that a successor lacks."""
    orphans = all_living(runtime)
    kill(orphans)
    if not await_deaths(orphans, limits.DEATH_S):
        raise Refused(f"host serve: a process of a dead host side does not die: {all_living(runtime)}", Exit.FAULT)


def _announce(side: Served) -> None:
    if side.spawner is None:
        say(f"{_named(side.wish)} serves already")
    where = "" if side.wish.instance == "default" else f" as {side.wish.instance}"
    for source in side.sources:
        mode = ", read-only" if source.read_only else ""
        size = show_size(source.size_bytes)
        say(f"serving {source.name}{where}: {source.path}, {size} in blocks of {source.block_size}{mode}")


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
