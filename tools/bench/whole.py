"""System `whole`: a file of the host to /dev/ublkbN by the product's own commands and processes."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bus.control import ask
from bus.runtime import Runtime, Side
from common.errors import Exit, Refused, ReplugError
from gadget.usb import udc
from tools.bench.system import Ready, await_, disk_file
from tools.supervise.launch import all_living

INSTANCE = "bench"
_LIMIT_S = 120.0


@contextmanager
def whole(place: Path) -> Iterator[Ready]:
    """See the module."""
    with up([disk_file(place, "whole.img")]) as [device]:
        yield Ready(device, processes)


@contextmanager
def up(files: list[Path]) -> Iterator[list[Path]]:
    """Both sides as an instance of their own; yields the devices of `files`, which are known by their names."""
    udc.choose(None)  # Refused where there is none
    with ExitStack() as stack:
        stack.callback(_replug, "gadget", "down", "--force")
        _must("gadget", "up")
        stack.callback(_replug, "host", "down")
        _must("host", "serve", "--background", *map(os.fspath, files))
        found: Mapping[str, Path] = await_("the devices to be live", lambda: _live(len(files)))
        yield [found[file.stem] for file in files]


def processes() -> dict[str, int]:
    """Pid by side and role."""
    return {f"{side}.{record.role}": record.pid for side in Side for record in all_living(Runtime(side, INSTANCE))}


def _live(count: int) -> dict[str, Path] | None:
    try:
        exports: list[dict[str, Any]] = status_of(Side.GADGET, "session")["exports"]
    except ReplugError:
        return None
    there = {str(e["name"]): Path(e["device"]) for e in exports if e["state"] == "live" and Path(e["device"]).exists()}
    return there if len(there) == count else None


def _replug(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tools.cli", *words, "--instance", INSTANCE]
    return subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S)


def _must(*words: str) -> None:
    done = _replug(*words)
    if done.returncode:
        raise Refused(f"whole: replug {' '.join(words[:2])}: {done.stderr.strip()}", Exit.FAULT)


def status_of(side: Side, role: str) -> dict[str, Any]:
    """A role's own words."""
    told: dict[str, Any] = ask(Runtime(side, INSTANCE), role, "status", timeout_s=5.0)
    return told
