"""What the side tells its service manager: datagrams as sd_notify(3) says, and none that could hold it up."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.role import WATCHDOG
from bus.runtime import living
from common import limits
from tests.unit.test_supervise_live import LiveSide, side, steady
from tools.supervise.launch import SPAWNER, all_living, kill
from tools.supervise.notify import Notifier, interval_of, summary

__all__ = ["side"]  # a fixture


@pytest.fixture
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path_factory.mktemp("n") / "notify"))
        sock.settimeout(20)
        yield sock


def environment(manager: socket.socket, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": manager.getsockname(), **more}


def test_each_word_is_a_datagram(manager: socket.socket) -> None:
    notifier = Notifier(environment(manager))
    notifier.ready()
    notifier.alive()
    assert [manager.recv(100) for _ in range(2)] == [b"READY=1", b"WATCHDOG=1"]


def test_a_status_is_told_once_and_on_one_line(manager: socket.socket) -> None:
    notifier = Notifier(environment(manager))
    notifier.status("one\ntwo")
    notifier.status("one\ntwo")
    notifier.status("three")
    assert [manager.recv(100) for _ in range(2)] == [b"STATUS=one two", b"STATUS=three"]


def test_an_abstract_address_is_understood() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0replug-test-{os.getpid()}")
        sock.settimeout(5)
        Notifier({"NOTIFY_SOCKET": f"@replug-test-{os.getpid()}"}).alive()
        assert sock.recv(100) == b"WATCHDOG=1"


def test_a_manager_that_is_not_there_or_does_not_read_changes_nothing(manager: socket.socket, tmp_path: Path) -> None:
    Notifier({}).alive()
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).alive()
    notifier = Notifier(environment(manager))
    for _ in range(5000):  # far more than a socket takes
        notifier.alive()


@pytest.mark.parametrize(
    ("usec", "every_s"),
    [("", None), ("0", None), ("-5", None), ("x", None), ("1000000", 0.5), ("60000000", limits.BEAT_S)],
)
def test_pings_come_twice_as_often_as_asked_and_no_slower_than_our_beat(usec: str, every_s: float | None) -> None:
    assert interval_of(usec) == every_s


def test_the_summary_names_who_is_not_running() -> None:
    running, failed = ("usb", "running", ""), ("queue.a", "failed", "exit 20: no such device")
    assert summary([running, running]) == "2 processes, all running"
    assert summary([running, failed]) == "1 of 2 processes running; queue.a failed: exit 20: no such device"


def test_the_root_disks_processes_are_named_as_systemd_spares_them(
    side: LiveSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPLUG_ROOT_STORAGE", "1")
    side.up(steady("a"))
    for record in all_living(side.runtime):
        assert Path(f"/proc/{record.pid}/cmdline").read_bytes().startswith(b"@"), record


def test_without_being_asked_no_process_is_spared(side: LiveSide) -> None:
    side.up(steady("a"))
    for record in all_living(side.runtime):
        assert not Path(f"/proc/{record.pid}/cmdline").read_bytes().startswith(b"@"), record


def heard(manager: socket.socket, word: bytes) -> None:
    while word not in manager.recv(1000):
        pass


def test_a_side_pings_and_goes_on_pinging_when_watchdog_and_spawner_are_killed(
    side: LiveSide, manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(manager, WATCHDOG_USEC="200000").items():
        monkeypatch.setenv(name, value)
    side.up(steady("a"))
    heard(manager, b"WATCHDOG=1")
    for role in (WATCHDOG, SPAWNER):
        record = living(side.runtime, role)
        assert record is not None
        kill([record])
        side.until(lambda rows, role=role, old=record: rows[role]["pid"] not in (None, old.pid), f"another {role}")
        heard(manager, b"STATUS=") if role == WATCHDOG else None
        heard(manager, b"WATCHDOG=1")
