"""`replug top` in real terminals of 80x24 and 140x40 over both sides under load: before, during and after each kill.

The death is held open by a stop of whoever would start the successor, so `during` is a state and not a moment. What the
screens showed is kept in tests/snapshots/top (`REPLUG_SNAPSHOTS=1` writes them anew, for eyes to judge); without their
numbers they are compared.

Shows issue 5, item 1.
"""

import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bus.runtime import Runtime, Side, living
from tests.chaos.__main__ import BLOCKS
from tests.chaos.events import kind_of
from tests.chaos.stages import arm_next, await_state
from tests.chaos.workload import Workload
from tests.native.__main__ import images
from tests.native.bench import await_, bench
from tests.native.disk import ModelDisk
from tests.native.terminal import Terminal
from tools.cli.look import look

KEPT = Path(__file__).parent.parent / "snapshots" / "top"
SIZES = ((80, 24), (140, 40))
KINDS = ("usb", "queue", "source", "session", "watchdog", "spawner")
CASES = [(side, kind) for side in Side for kind in KINDS if kind != {Side.GADGET: "source", Side.HOST: "queue"}[side]]


@pytest.fixture(scope="module")
def terminals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Side, list[Terminal]]]:
    """Two for each side, and users of both disks."""
    before, os.environ["LC_ALL"] = os.environ.get("LC_ALL"), "C.UTF-8"
    place, made = tmp_path_factory.mktemp("t"), []
    with bench(images(tmp_path_factory.mktemp("files"))) as here:
        loads = [Workload(d, b, 1, 1, ModelDisk) for d, b in zip(here.devices, BLOCKS, strict=True)]
        try:
            found: dict[Side, list[Terminal]] = {side: [] for side in Side}
            for side in Side:
                for width, height in SIZES:
                    words = f"--side {side} --interval 200ms"
                    found[side].append(Terminal(place / f"{side}{width}", width, height, words))
                    made.append(found[side][-1])
            yield found
        finally:
            for terminal in made:
                terminal.close()
            for load in loads:
                load.stop(20.0)
            os.environ.pop("LC_ALL")
            if before is not None:
                os.environ["LC_ALL"] = before


@contextmanager
def successor_held(runtime: Runtime, role: str, place: Path) -> Iterator[None]:
    """Whoever takes the place of `role` stops at its first step, until we leave."""
    if role == "spawner":
        twin = living(runtime, "twin")
        assert twin is not None
        os.kill(twin.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(twin.pid, signal.SIGCONT)
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(place / "told"))
        told.settimeout(20.0)
        arm_next(runtime, role, {"name": "role.starting", "act": "stop", "tell": str(place / "told")})
        try:
            yield
        finally:
            pid = int(told.recv(200).split()[1])
            await_state(pid, "T")
            os.kill(pid, signal.SIGCONT)


def role_of(runtime: Runtime, kind: str) -> str:
    if kind == "queue":  # that of the first disk: ids, and so names, differ from run to run
        return str(look(runtime)["exports"][0]["role"])
    names = sorted(path.name for path in (runtime.root / "role").iterdir())
    return next(name for name in names if kind_of(name) == kind)


def row(lines: list[str], role: str) -> str:
    """Of the process list, the first heading of which is PROCESS."""
    start = next((n for n, line in enumerate(lines) if line.startswith(" PROCESS ")), len(lines))
    return next((line[1:] for line in lines[start:] if line[1:].startswith(_cut(role))), "")


def _cut(role: str) -> str:
    return role if len(role) <= 15 else role[:14]


def shape(lines: list[str]) -> str:
    """What of a screen does not depend on time and place: words. The event log, numbers and bars are left out."""
    last_rule = max((n for n, line in enumerate(lines) if line.startswith(" ──")), default=len(lines))
    text = "\n".join([*lines[:last_rule], lines[-1]])
    text = re.sub(r"(?m)^   [ ▁▂▃▄▅▆▇█·]*$", "bars", text)
    text = re.sub(r"(?m)( running .*?) +signal .*$", r"\1", text)  # of deaths in tests before
    text = re.sub(r"queue\.\w+…?", "queue.X", text)
    text = re.sub(r"session \w+…|▶| up [\dhdms]+", " ", text)
    text = re.sub(r"\d[\d.]*[A-Za-zµ%/]*|(?<=\s)-(?=\s|$)", "#", text)
    lines = [" ".join(line.split()) for line in text.replace(", I/O waits for #", "").splitlines()]
    return "\n".join(re.sub(r"#( #)+", "#", line) for line in lines)


def keep(lines: list[str], name: str) -> None:
    """Compare with what was judged by eye, or write it to be judged."""
    path = KEPT / f"{name}.txt"
    if os.environ.get("REPLUG_SNAPSHOTS"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    assert shape(lines) == shape(path.read_text().splitlines()), f"{name}:\n" + "\n".join(lines)


@pytest.mark.parametrize(("side", "kind"), CASES, ids=[f"{side}-{kind}" for side, kind in CASES])
def test_a_kill_is_shown_while_it_lasts_and_told_when_it_is_over(
    terminals: dict[Side, list[Terminal]], side: Side, kind: str, tmp_path: Path
) -> None:
    runtime = Runtime(side)
    role = role_of(runtime, kind)
    victim = living(runtime, role)
    assert victim is not None
    for terminal in terminals[side]:
        lines = terminal.until(
            lambda lines: "● healthy" in lines[0] and f" {victim.pid} running" in row(lines, role), f"{role} running"
        )
        assert len(lines) == terminal.height and terminal.width - max(map(len, lines)) in (0, 1), "the whole screen"
        keep(lines, f"{side}-{kind}-{terminal.width}-before")
    with successor_held(runtime, role, tmp_path):
        os.kill(victim.pid, signal.SIGKILL)
        for terminal in terminals[side]:
            lines = terminal.until(lambda lines: during(lines, kind, role, victim.pid), f"{role} being dead")
            keep(lines, f"{side}-{kind}-{terminal.width}-during")
    await_(lambda: (now := living(runtime, role)) is not None and now.pid != victim.pid, f"a successor of {role}")
    successor = living(runtime, role)
    assert successor is not None
    for terminal in terminals[side]:
        lines = terminal.until(
            lambda lines: "● healthy" in lines[0] and f" {successor.pid} running" in row(lines, role), "its successor"
        )
        told = [line for line in lines if re.match(rf" \d\d:\d\d:\d\d {re.escape(role)} ", line)]
        few = terminal.height == 24  # its six lines of events may all be newer
        assert told or few or kind in ("watchdog", "spawner"), "\n".join(lines)
        if kind not in ("watchdog", "spawner"):
            assert "signal 9" in row(lines, role)
        keep(lines, f"{side}-{kind}-{terminal.width}-after")


def during(lines: list[str], kind: str, role: str, dead: int) -> bool:
    """Does the screen say that it is dead, and why?"""
    head, line = " ".join(lines[:2]), row(lines, role)
    if kind == "watchdog":  # who tells of the processes is itself gone, and they are told nevertheless
        others = [row(lines, other) for other in ("spawner", "usb", "session")]
        told = "watchdog is starting since " in head and " - starting" in line
        return "● degraded" in head and told and all(" running " in other for other in others)
    if kind == "spawner":
        return "● degraded" in head and " - starting" in line
    return "● degraded" in head and " starting " in line and "signal 9" in line and f" {dead} " not in line
