"""Issue 3, item 1: each role is respawned although nothing of Python can be read: that disk may be the one we serve."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import tools
from bus.runtime import Side
from tests.chaos.events import kind_of
from tests.chaos.workload import BLOCK, Workload
from tools.demo import inside

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
BLOCKS = (512, 768)
LIMIT_S = 90.0
_libc = ctypes.CDLL(None, use_errno=True)
_MNT_DETACH = 2


@contextmanager
def covered(directories: set[Path]) -> Iterator[None]:
    """An empty file system over each of them: what is not in memory is not there."""
    with ExitStack() as stack:
        for directory in directories:
            place = os.fsencode(directory)
            if _libc.mount(b"none", place, b"tmpfs", 0, None):
                raise OSError(ctypes.get_errno(), f"mount over {directory}")
            stack.callback(_libc.umount2, place, _MNT_DETACH)
        assert not Path(os.__file__).exists() and not Path(tools.__file__).exists()
        yield


def homes_of_python() -> set[Path]:
    """Interpreter, standard library, environment, our own code, and the C library's directory."""
    root = Path(tools.__file__).parents[1]
    homes = {Path(os.__file__).parent, Path(sys.prefix).resolve(), root, Path("/usr/lib")}
    return {home for home in homes if not any(other != home and other in home.parents for other in homes)}


def test_every_role_is_respawned_while_the_disk_that_holds_python_cannot_be_read(tmp_path: Path) -> None:
    files = [tmp_path / "a.img", tmp_path / "b.img"]
    for file, blocks in zip(files, BLOCKS, strict=True):
        file.write_bytes(bytes(blocks * BLOCK))
    with inside.both_sides(*files) as bench:
        devices = [Path(bench.image_device), Path(bench.scratch_device)]
        loads = [Workload(d, b, 1, 2) for d, b in zip(devices, BLOCKS, strict=True)]
        victims = sorted(inside.pids(), key=lambda key: (key[0], kind_of(key[1]) == "spawner", key[1]))
        stuck = ""
        with covered(homes_of_python()):
            for side, role in victims:
                if role != "twin":
                    stuck = stuck or kill_and_wait(side, role, loads)
        for load in loads:
            load.stop(LIMIT_S)
        assert not stuck
    for load, file in zip(loads, files, strict=True):
        load.judge_file(file)


def kill_and_wait(side: Side, role: str, loads: list[Workload]) -> str:
    """Returns what did not come, or "". No assertion here: a failure's text could not be read from the disk."""
    before = inside.pids()[side, role]
    os.kill(before, signal.SIGKILL)
    end = time.monotonic() + LIMIT_S
    while inside.pids().get((side, role)) in (None, before):
        if time.monotonic() > end:
            return f"no successor of {side} {role} within {LIMIT_S:g} s"
        time.sleep(0.02)
    marks = [load.completed for load in loads]
    while any(load.completed < mark + 4 for load, mark in zip(loads, marks, strict=True)):
        if time.monotonic() > end:
            return f"no I/O after the death of {side} {role} within {LIMIT_S:g} s: {[load.violation for load in loads]}"
        time.sleep(0.02)
    return ""
