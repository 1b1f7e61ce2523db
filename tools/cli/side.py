"""Bring a side up and down from the command line, and find the one that runs.

Used by both sides' commands. Up and down are one path each: what a dead side left is taken over by `up`, and ended by
`down` through a spawner of its own that is told to go down at once.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from subprocess import Popen
from typing import Any

from bus.control import ask
from bus.role import WATCHDOG
from bus.runtime import ProcessRecord, Runtime, living, read_record, recorded_roles, take_reason
from common import limits
from common.errors import Exit, Gone, Refused
from tools.cli.waiting import Waiting
from tools.cli.where import find as find
from tools.supervise.launch import SPAWNER, all_living, await_deaths, kill, launch, supervised
from tools.supervise.memory import Memory, failures_path
from tools.supervise.plan import Plan, plan_path
from tools.supervise.twin import TWIN

Status = dict[str, Any]
_LOOK_S = 0.1  # between two looks while something is waited for
_ANSWER_S = 2.0
_ADOPT_S = 4 * limits.SILENCE_S  # by then watchdog and spawner have replaced each other, if either still can
_ENDING_S = 1.0  # between two questions who has not ended yet
_LAST_S = 1.0  # from the removal of the directory to the exit of the process that removed it
_DOWN_S = 3 * (limits.DRAIN_S + limits.DEATH_S + limits.RETIRE_S) + limits.READY_S  # stages, and a fresh start


def say(text: str) -> None:
    print(f"replug: {text}", file=sys.stderr, flush=True)


def processes(runtime: Runtime, timeout_s: float = _ANSWER_S) -> Status:
    """The watchdog's status. Gone if it does not answer."""
    status: Status = ask(runtime, WATCHDOG, "status", timeout_s=timeout_s)
    return status


def refuse_second(runtime: Runtime, command: str) -> None:
    """Refused (3) while watchdog or spawner lives; a side whose supervision is dead is there to be taken over."""
    if supervised(runtime):
        record = read_record(runtime, SPAWNER)
        who = f"pid {record.pid}" if record else "its watchdog"
        cure = f"'replug {runtime.side} down' ends it, --instance starts another"
        raise Refused(
            f"{command}: {runtime.side} runs already as instance {runtime.instance!r}: {who}: {cure}", Exit.BUSY
        )


def adopt(runtime: Runtime) -> bool:
    """For a service manager that starts us again: does the side run, and does its supervision answer?

    One that lives and stays silent is ended; what it supervised goes on, and the bring-up that follows takes it over.
    """
    deadline = time.monotonic() + _ADOPT_S
    while supervised(runtime):
        try:
            processes(runtime)
            return True
        except Gone:
            if time.monotonic() > deadline:
                silent = [r for role in (SPAWNER, TWIN, WATCHDOG) if (r := living(runtime, role)) is not None]
                say(f"{runtime.side}: its supervision is silent: killed: {', '.join(str(r.pid) for r in silent)}")
                kill(silent)
                if not await_deaths(silent, limits.DEATH_S):
                    raise Refused(f"{runtime.side}: its supervision does not die: {silent}", Exit.FAULT) from None
    return False


def bring_up(plan: Plan, runtime: Runtime) -> "Popen[bytes]":
    """Start the side and wait until every role of the plan is ready.

    On a failure nothing of a fresh side is left. A side that was there before stays: its devices may have users.
    """
    fresh = not Memory.load(runtime).wanted
    runtime.create()
    plan.save(runtime)
    memory = Memory.load(runtime)
    if memory.down:  # an interrupted `down`: what was still wanted then is wanted again
        replace(memory, down=False).save(runtime)
    for role in (SPAWNER, WATCHDOG, *(spec.role for spec in plan.roles), *plan.awaited):
        take_reason(runtime, role)
    spawner = launch(runtime)
    try:
        _await_ready(runtime, plan, spawner)
    except BaseException:
        if fresh:
            take_down(runtime)
        spawner.poll()
        raise
    return spawner


def _await_ready(runtime: Runtime, plan: Plan, spawner: "Popen[bytes]") -> None:
    deadline = time.monotonic() + limits.READY_S + limits.READY_S / 2
    waiting = Waiting()
    while True:
        began = time.monotonic()
        waits_for, failed = _look(runtime, plan, spawner)
        look_s = time.monotonic() - began
        if failed is not None:
            raise Refused(failed, Exit.FAULT)
        if not waits_for:
            return
        if time.monotonic() > deadline:
            raise Refused(f"{runtime.side}: not ready after {limits.READY_S * 1.5:g} s: {waits_for}", Exit.FAULT)
        if line := waiting.line(waits_for, time.monotonic()):
            say(line)
        time.sleep(max(_LOOK_S, 4 * look_s))  # of 32 exports a look costs the watchdog what their start needs


def _look(runtime: Runtime, plan: Plan, spawner: "Popen[bytes]") -> tuple[str, str | None]:
    """What is waited for (empty: nothing), and what has failed for good."""
    if spawner.poll() is not None and not supervised(runtime):
        why = take_reason(runtime, SPAWNER) or f"exit {spawner.returncode}"
        return "", f"{runtime.side}: its spawner ended: {why}: see {runtime.log_path(SPAWNER)}"
    try:
        rows = {row["role"]: row for row in processes(runtime, 1.0)["processes"]}
    except Gone:
        said = take_reason(runtime, WATCHDOG)
        return f"the watchdog ({said})" if said else "the watchdog", None
    waiting = []
    for role in (*(spec.role for spec in plan.roles), *plan.awaited):
        row = rows.get(role, {})
        if row.get("state") in ("failed", "stuck"):
            return "", _without_exit(str(row.get("reason"))) or f"{role} is {row['state']}"
        if row.get("state") != "running":
            waiting.append(f"{role} ({row.get('reason') or row.get('state', 'unknown')})")
    return ", ".join(waiting), None


def _without_exit(reason: str) -> str:
    """A role's own words are whole sentences: `exit 20: ` before them says nothing to people."""
    return reason.partition(": ")[2] if reason.startswith("exit ") else reason


def take_down(runtime: Runtime, show: Callable[[str], None] = say) -> None:
    """End a side, living or dead, and return when nothing of it is left.

    Refused (1) with what could not be taken away; the runtime directory stays then, and `down` can be said again.
    """
    failures_path(runtime).unlink(missing_ok=True)
    fresh: Popen[bytes] | None = None
    if supervised(runtime):
        fresh = _ask_down(runtime)
    elif not plan_path(runtime).exists() or not _ever_ran(runtime):
        _sweep(runtime)
        return
    else:
        fresh = _launch_for_down(runtime)
    _await_down(runtime, show, fresh)


def _ever_ran(runtime: Runtime) -> bool:
    return bool(set(recorded_roles(runtime)) - {SPAWNER, WATCHDOG, TWIN}) or bool(Memory.load(runtime).leaving)


def _launch_for_down(runtime: Runtime) -> "Popen[bytes]":
    replace(Memory.load(runtime), down=True).save(runtime)
    return launch(runtime)


def _ask_down(runtime: Runtime) -> "Popen[bytes] | None":
    """Tell the watchdog. If none comes, all of the side's processes are ended, and a fresh spawner goes down."""
    deadline = time.monotonic() + limits.READY_S
    while runtime.root.is_dir():
        try:
            ask(runtime, WATCHDOG, "down", timeout_s=_ANSWER_S)
            return None
        except Gone:
            if not supervised(runtime) and living(runtime, TWIN) is None:
                try:
                    return _launch_for_down(runtime)  # it has died meanwhile: no watchdog will come
                except FileNotFoundError:
                    return None  # it had heard, and has just gone
            if time.monotonic() > deadline:
                replace(Memory.load(runtime), down=True).save(runtime)  # also for a twin that outlives this
                kill(all_living(runtime))
                await_deaths(all_living(runtime), limits.DEATH_S)
                return _launch_for_down(runtime)
    return None


def _await_down(runtime: Runtime, show: Callable[[str], None], fresh: "Popen[bytes] | None") -> None:
    deadline = time.monotonic() + _DOWN_S
    waiting, due = Waiting(), 0.0
    last: list[ProcessRecord] = []
    while runtime.root.is_dir():
        last = all_living(runtime) or last
        if failures_path(runtime).exists() and await_deaths(all_living(runtime), limits.DEATH_S):
            failures = json.loads(failures_path(runtime).read_text())
            text = "; ".join(f"{role}: {why}" for role, why in failures.items())
            raise Refused(f"{runtime.side} is down, but not all is gone: {text}: try again", Exit.FAULT)
        if fresh is not None and fresh.poll() and not supervised(runtime) and not failures_path(runtime).exists():
            why = take_reason(runtime, SPAWNER) or f"exit {fresh.returncode}"
            raise Refused(f"{runtime.side}: not cleared away: the spawner ended: {why}", Exit.FAULT)
        if time.monotonic() > deadline:
            left = ", ".join(f"{r.role} ({r.pid})" for r in all_living(runtime)) or "nobody"
            raise Refused(f"{runtime.side} does not go down: alive: {left}: see {runtime.root}/log", Exit.FAULT)
        if time.monotonic() > due:
            due = time.monotonic() + _ENDING_S
            if line := waiting.line(f"{_ending(runtime)} to end", time.monotonic()):
                show(line)
        await_deaths(last[:1], _LOOK_S)
        time.sleep(_LOOK_S / 5)  # what remains is the removal of a directory
    if not await_deaths(last, _LAST_S):  # the spawner, which removed it, and what its watchdog did not know of
        kill(last)
        await_deaths(last, limits.DEATH_S)
    if fresh is not None:
        fresh.wait(limits.DEATH_S)


def _ending(runtime: Runtime) -> str:
    try:
        rows = processes(runtime, 1.0)["processes"]
    except Gone:
        return "the watchdog"
    return ", ".join(f"{r['role']} ({r['phase']})" for r in rows if r.get("phase", "gone") != "gone") or "the spawner"


def _sweep(runtime: Runtime) -> None:
    """No plan was ever written: there is nothing in the kernel, only names."""
    living_now = all_living(runtime)
    kill(living_now)
    if not await_deaths(living_now, limits.DEATH_S):
        raise Refused(f"{runtime.root}: a process of it does not die: {living_now}", Exit.FAULT)
    runtime.remove()
