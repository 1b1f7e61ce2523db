"""Kill points in real processes: a role killed at a named step, by call or at its birth, and its successor goes on.

Shows issue 3, item 7.
"""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.control import ask
from common.wire import Op
from tests.unit.test_host_source_live import BLOCK, Bench, Usb, bench, usb
from tests.unit.test_supervise_live import ROLES, LiveSide, side
from tools.supervise.plan import RoleSpec

__all__ = ["bench", "side", "usb"]  # fixtures


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(os.fspath(tmp_path / "heard"))
        end.settimeout(20)
        yield end


@pytest.mark.parametrize("point", ["source.requests.received", "source.thread.working", "source.finished"])
def test_source_killed_at_each_step_of_a_write_and_its_successor_does_it(
    bench: Bench, usb: Usb, heard: socket.socket, point: str
) -> None:
    first = bench.start_source()
    usb.until(lambda: usb.hellos, "HELLO")
    ask(bench.runtime, "source.disk", "trace", {"name": point, "act": "kill", "tell": heard.getsockname()})
    usb.arena.memory[:BLOCK] = b"w" * BLOCK
    usb.ask([1, Op.WRITE, 0, 5, 1, 0])
    assert heard.recv(100) == f"{point} {first.pid}".encode()
    assert first.wait(20) == -9
    assert usb.completed == {}, "nothing is answered before these steps"
    bench.start_source()
    usb.until(lambda: len(usb.hellos) == 2, "HELLO of the successor")
    usb.ask([1, Op.WRITE, 0, 5, 1, 0])
    usb.until(lambda: usb.completed, "its completion")
    assert usb.completed == {1: 0}
    assert bench.image.read_bytes()[5 * BLOCK : 6 * BLOCK] == b"w" * BLOCK


def test_role_killed_once_in_its_start_is_respawned_though_its_arguments_say_kill(
    side: LiveSide, heard: socket.socket, tmp_path: Path
) -> None:
    once = tmp_path / "once"
    once.touch()
    trace = {"name": "tracing.starting", "act": "kill", "once": str(once), "tell": heard.getsockname()}
    side.up(RoleSpec("usb", f"{ROLES}.tracing", {"trace": trace}), RoleSpec("session", f"{ROLES}.steady"))
    rows = side.until(lambda rows: rows["usb"]["state"] == "running", "usb to run")
    killed = int(heard.recv(100).split()[1])
    assert rows["usb"]["pid"] != killed
    assert (rows["usb"]["restarts"], rows["usb"]["last_exit"]) == (1, "killed by signal 9")
    assert rows["session"]["restarts"] == 0
