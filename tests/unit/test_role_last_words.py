"""A role that ends by an exception says where, and reads no file for it: that file may be on the disk it serves."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from bus.role import Birth, Role, live
from bus.runtime import Runtime, Side, take_reason
from common.errors import RoleExit


def ends_badly(birth: Birth, opened: Path) -> int:
    """Its exit status. `opened` gets the name of each file that it opens from the exception on."""
    pid = os.fork()
    if pid == 0:
        record = os.open(opened, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def hook(event: str, args: tuple[Any, ...]) -> None:
            if event == "open" and isinstance(args[0], (str, bytes)):
                os.write(record, os.fsencode(args[0]) + b"\n")

        def start(role: Role) -> None:
            sys.addaudithook(hook)
            raise OSError(5, "the ground has moved")

        live(birth, start)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    runtime = Runtime(Side.GADGET, "t", tmp_path)
    runtime.create()
    return runtime


def test_the_last_words_of_a_role_are_read_from_no_file(runtime: Runtime, tmp_path: Path) -> None:
    opened = tmp_path / "opened"
    assert ends_badly(Birth(runtime, "usb", 1), opened) == RoleExit.RESTART
    assert take_reason(runtime, "usb") == "OSError: [Errno 5] the ground has moved"
    log = runtime.log_path("usb").read_text()
    assert "test_role_last_words.py" in log and "in ends_badly.<locals>.start" in log and "the ground has moved" in log
    own = os.fsdecode(tmp_path)
    assert [name for name in opened.read_text().splitlines() if not name.startswith(own)] == []
