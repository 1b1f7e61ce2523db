"""`replug export fail|limit|resume NAME`: what the operator decides about a parked export of the gadget side.

The gadget's session keeps the decision (gadget.session.operator); here it is said, and `fail` waits until the device is
gone and its I/O has ended.
"""

import time
from pathlib import Path
from typing import Any

from bus.control import ask
from bus.runtime import Runtime, Side, check_name
from common.errors import Exit, Gone, Refused
from common.units import parse_time, show_time
from tools.cli.side import say
from tools.cli.waiting import Waiting
from tools.cli.where import exists

_GONE_S = 30.0  # the queue is killed, STOP fails the I/O: a few control commands
_LOOK_S = 0.05


def decide(action: str, instance: str, export: str, limit: str | None) -> int:
    """Say it to the session. Refused with its words (2: nothing to decide, 3: its device is still ending)."""
    runtime = Runtime(Side.GADGET, check_name(instance, "instance name"))
    if not exists(runtime):
        raise Refused(f"export {action}: no gadget side runs here as instance {instance!r}: nothing to do", Exit.DOWN)
    arguments: dict[str, Any] = {"export": export}
    if limit is not None:
        arguments["limit_s"] = _seconds(limit)
    try:
        before = ask(runtime, "session", f"export_{action}", arguments)
    except Gone as error:
        raise Refused(f"export {action}: {error}: see 'replug status'", Exit.FAULT) from None
    if action == "fail":
        _await_end(str(before["name"]), str(before["device"]))
    elif action == "limit":
        seconds = arguments["limit_s"]
        say(f"{before['name']}: " + (f"fails when parked for {show_time(seconds)}" if seconds else "waits, no limit"))
    else:
        say(f"{before['name']}: resumed: what the host has is taken as it is")
    return Exit.DONE


def _seconds(limit: str) -> float:
    if limit == "none":
        return 0.0
    try:
        return parse_time(limit)
    except ValueError as error:
        raise Refused(f"limit {limit}: {error}: or say none") from None


def _await_end(name: str, device: str) -> None:
    """Until the kernel has no such disk: then every I/O of it has ended, and its holders get EIO for each new one."""
    block, deadline = Path("/sys/block") / Path(device).name, time.monotonic() + _GONE_S
    waiting = Waiting()
    while block.exists():
        if line := waiting.line(f"the kernel to end {device}", time.monotonic()):
            say(line)
        if time.monotonic() > deadline:
            raise Refused(f"{name}: {device} is still there after {_GONE_S:g} s: see 'replug status'", Exit.FAULT)
        time.sleep(_LOOK_S)
    say(f"{name}: failed: {device} has ended")
