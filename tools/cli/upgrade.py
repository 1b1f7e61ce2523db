"""`replug upgrade`: this installation takes over a side that an older (or newer) one runs, while its disks are in use.

First its spawner takes the place of the one that runs (tools.supervise.succession); then watchdog, session, the queues
or sources and usb are restarted, one at a time, each when the one before is there: so I/O waits for one restart and
never for two. Nothing is remembered: killed anywhere and said again, it does all of it again.
"""

import json
import os
import select
import signal
import socket
import time
from pathlib import Path
from typing import Any

from bus import fds as fdsocket
from bus.role import WATCHDOG
from bus.runtime import FIRST_FORMAT, FORMAT, Runtime, living, recorded_roles, take_reason
from common import limits
from common.errors import MALFORMED, Exit, Gone, Refused, ReplugError, WireError
from common.units import show_ms
from tools.cli.claim import bringing_up
from tools.cli.roles import replaced
from tools.cli.side import find, processes, say
from tools.cli.waiting import Waiting
from tools.supervise.launch import SPAWNER, command, installation, pythonpath, supervised
from tools.supervise.memory import memory_path
from tools.supervise.plan import plan_path, stop_stage
from tools.supervise.succession import SUCCEED
from tools.supervise.twin import TWIN
from tools.version import VERSION

_LOOK_S = 0.05
_ANSWER_S = limits.SILENCE_S  # of a spawner: it forks, and may be held up as long before its watchdog kills it
_START_S = 1.5 * limits.READY_S  # a Python with all imports; seconds in the emulated guest


def upgrade(side: str | None, instance: str) -> int:
    """Refused, with nothing touched, where old and new cannot work side by side; 1 if a role did not come back."""
    runtime = find(side, instance)
    with bringing_up(runtime, "upgrade"):
        if not supervised(runtime):
            cure = "start the side again with this installation: that takes over what is there"
            raise Refused(f"upgrade: the supervision of {runtime.side} is dead: {cure}", Exit.DOWN)
        refuse_other_formats(runtime)
        began = time.monotonic()
        old = living(runtime, SPAWNER)
        pid = _succeed(runtime)
        say(f"{SPAWNER}: pid {old.pid if old else 'unknown'} gave its place to {pid}, which runs from {installation()}")
        longest, faults = _restart_all(runtime)
    took = show_ms(time.monotonic() - began)
    if faults:
        raise Refused(f"upgrade: not all of {runtime.side} is new: {'; '.join(faults)}: say it again", Exit.FAULT)
    say(f"{runtime.side} is upgraded to {VERSION} in {took}{_longest(longest)}")
    return Exit.DONE


def _longest(longest: tuple[float, str]) -> str:
    waited_ms, role = longest
    if not role:
        return ""  # nobody could tell: a host without a gadget
    if not waited_ms:
        return "; no I/O was under way"
    return f"; I/O waited for {show_ms(waited_ms / 1000)} at most, when {role} was restarted"


# -- before anything is touched ----------------------------------------------------------------------------------------
def refuse_other_formats(runtime: Runtime) -> None:
    """Refused (2) if plan, memory or a living process are of a format other than ours."""
    for path in (plan_path(runtime), memory_path(runtime)):
        _refuse_other(path.name, _format_of(path))
    for role in recorded_roles(runtime):
        if (record := living(runtime, role)) is not None:
            _refuse_other(role, record.format)


def _format_of(path: Path) -> object:
    try:
        return json.loads(path.read_text()).get("format", FIRST_FORMAT)
    except FileNotFoundError:
        return FORMAT  # a side that wants nothing yet
    except (OSError, *MALFORMED) as error:
        return f"unreadable ({error})"


def _refuse_other(what: str, format_: object) -> None:
    if format_ != FORMAT:
        why = f"{what} is of format {format_}, and replug {VERSION} works beside {FORMAT} only"
        raise Refused(f"upgrade: {why}: nothing was done: end all processes at once, see docs/how-to/upgrade.md")


# -- the spawner -------------------------------------------------------------------------------------------------------
def _succeed(runtime: Runtime) -> int:
    """Have the spawner that lives execute ours, and wait until that has its place. Returns its pid."""
    take_reason(runtime, SPAWNER)
    pid, pidfd = _order(runtime)
    try:
        _await_place(runtime, pid, pidfd)
    finally:
        os.close(pidfd)
    return pid


def _order(runtime: Runtime) -> tuple[int, int]:
    """The successor's pid and pidfd."""
    # Its own name of the directory, not that of a link by which we may have come.
    itself = Runtime(runtime.side, runtime.instance, runtime.root.resolve().parent)
    order = {"do": "successor", "format": FORMAT, "command": [*command(itself), SUCCEED], "pythonpath": pythonpath()}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(_ANSWER_S)
        try:
            sock.connect(os.fspath(runtime.spawner_socket()))
            fdsocket.send(sock, order)
            while True:  # what all watchers are told comes too
                message, received = fdsocket.receive(sock)
                match message.get("event"):
                    case "successor":
                        return int(message["pid"]), received[0]
                    case "error":
                        cure = "end all processes at once, see docs/how-to/upgrade.md"
                        raise Refused(f"upgrade: the spawner that runs refuses: {message.get('why')}: {cure}")
                for fd in received:
                    os.close(fd)
        except (OSError, Gone, WireError) as error:
            why = f"the spawner that runs: {error}: nothing was done: say it again"
            raise Refused(f"upgrade: {why}", Exit.FAULT) from None


def _await_place(runtime: Runtime, pid: int, pidfd: int) -> None:
    waiting, deadline = Waiting(), time.monotonic() + _START_S
    dead = select.poll()
    dead.register(pidfd, select.POLLIN)
    while not ((record := living(runtime, SPAWNER)) is not None and record.pid == pid):
        if dead.poll(_LOOK_S * 1000):
            why = take_reason(runtime, SPAWNER) or f"see {runtime.log_path(SPAWNER).with_suffix('.err')}"
            raise Refused(f"upgrade: the new spawner ended: {why}: what ran goes on", Exit.FAULT)
        if time.monotonic() > deadline:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            raise Refused(f"upgrade: the new spawner was not there after {_START_S:g} s: what ran goes on", Exit.FAULT)
        if line := waiting.line("the new spawner to import what it needs", time.monotonic()):
            say(line)


# -- all others --------------------------------------------------------------------------------------------------------
def _restart_all(runtime: Runtime) -> tuple[tuple[float, str], list[str]]:
    """The longest wait of I/O in milliseconds, and whose restart it was; what went wrong, of each that is not new."""
    longest, faults = (0.0, ""), []
    for role in [WATCHDOG, *_roles(runtime)]:
        try:
            done = replaced(runtime, "restart", role)
        except ReplugError as error:  # it may have been so before: the others are upgraded all the same
            faults.append(str(error))
            continue
        say(done.told)
        if done.waited_ms is not None:
            longest = max(longest, (done.waited_ms, role))
        if role == WATCHDOG:
            _await_twin(runtime)
    return longest, faults


def _roles(runtime: Runtime) -> list[str]:
    """All that the watchdog runs, in the order in which they are restarted: usb last, as all I/O runs over it."""
    rows = _await_rows(runtime)
    ours = [row["role"] for row in rows if row["role"] not in (WATCHDOG, SPAWNER, TWIN) and row["state"] != "gone"]
    return sorted(ours, key=stop_stage)


def _await_rows(runtime: Runtime) -> list[dict[str, Any]]:
    deadline = time.monotonic() + limits.READY_S
    while True:
        try:
            rows: list[dict[str, Any]] = processes(runtime)["processes"]
            return rows
        except Gone as error:
            if time.monotonic() > deadline:
                raise Refused(f"upgrade: {error}: say it again", Exit.FAULT) from None


def _await_twin(runtime: Runtime) -> None:
    """The watchdog shows a twin once the new spawner has greeted it: before that a restart would wait for its fork."""
    deadline = time.monotonic() + limits.READY_S
    while not any(row["role"] == TWIN for row in _await_rows(runtime)):
        if time.monotonic() > deadline:
            raise Refused("upgrade: the new spawner has no twin: say it again", Exit.FAULT)
        time.sleep(_LOOK_S)
