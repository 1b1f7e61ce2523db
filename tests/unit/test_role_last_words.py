"""A role that ends by an exception says where, and reads no file for it: that file may be on the disk it serves."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from bus.role import Birth, Role, live
from bus.runtime import Runtime, Side, take_reason
from common.errors import RoleExit


def moved() -> None:
    raise OSError(5, "the ground has moved")


def moved_under_a_thread() -> None:
    Thread(target=moved).start()


def moved_under_a_finaliser() -> None:
    class Finalised:
        def __del__(self) -> None:
            moved()

    Finalised()
    raise SystemExit(7)


def ends_badly(birth: Birth, opened: Path, how: Callable[[], None] = moved) -> int:
    """Its exit status. `opened` gets the name of each file that it opens from the exception on."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)  # if it lives on, which is a failure
        record = os.open(opened, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def hook(event: str, args: tuple[Any, ...]) -> None:
            if event == "open" and isinstance(args[0], (str, bytes)):
                os.write(record, os.fsencode(args[0]) + b"\n")

        def start(role: Role) -> None:
            sys.addaudithook(hook)
            how()

        live(birth, start)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    runtime = Runtime(Side.GADGET, "t", tmp_path)
    runtime.create()
    return runtime


@pytest.mark.parametrize("how", [moved, moved_under_a_thread])
def test_the_last_words_of_a_role_are_read_from_no_file(
    runtime: Runtime, tmp_path: Path, how: Callable[[], None]
) -> None:
    opened = tmp_path / "opened"
    assert ends_badly(Birth(runtime, "usb", 1), opened, how) == RoleExit.RESTART
    assert take_reason(runtime, "usb") == "OSError: [Errno 5] the ground has moved"
    log = runtime.log_path("usb").read_text()
    assert "test_role_last_words.py" in log and "in moved" in log and "the ground has moved" in log
    assert others(opened, tmp_path) == []


def test_a_finaliser_that_fails_is_told_from_no_file(runtime: Runtime, tmp_path: Path) -> None:
    opened = tmp_path / "opened"
    assert ends_badly(Birth(runtime, "usb", 1), opened, moved_under_a_finaliser) == RoleExit.RESTART
    assert "in moved" in runtime.log_path("usb").read_text()
    assert others(opened, tmp_path) == []


def others(opened: Path, own: Path) -> list[str]:
    """The files that were opened outside the test's own directory."""
    return [name for name in opened.read_text().splitlines() if not name.startswith(os.fsdecode(own))]
