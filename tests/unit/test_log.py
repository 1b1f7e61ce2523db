"""A role's log: one JSON object a line, bounded, never waiting; levels set at run time; journald's own protocol."""

import json
import os
import socket
from pathlib import Path

import pytest

from common import follow, limits
from common.journal import Journal, encode
from common.log import Level, Log, human
from tools.cli.logs import Tail


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "usb.log", "usb")


def test_a_line_is_an_object_with_time_level_role_pid_text_and_its_fields(log: Log, tmp_path: Path) -> None:
    log.warning("two\nlines", io="0000000a.00000001", tag=3)
    [line] = lines(tmp_path / "usb.log")
    assert line.pop("time").endswith("+00:00")  # type: ignore[attr-defined]
    assert line == {
        "level": "warning", "role": "usb", "pid": os.getpid(), "text": "two\nlines", "io": "0000000a.00000001", "tag": 3
    }  # fmt: skip


def test_people_get_one_line_of_it_in_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    line = '{"time":"2026-11-23T12:00:00.250000+00:00","level":"info","role":"usb","pid":7,"text":"a\\nb","tag":3}'
    assert human(line)[2:] == ":00:00.250 info    usb[7] a\\nb tag=3"
    assert human("Fatal Python error: Aborted") == "Fatal Python error: Aborted"
    assert human("{}") == "{}"


def test_what_is_below_the_level_is_not_written_and_a_kept_level_is_the_successors_too(tmp_path: Path) -> None:
    path = tmp_path / "usb.log"
    first = Log(path, "usb")
    first.debug("unseen")
    first.keep_level(Level.DEBUG)
    first.debug("seen")
    Log(path, "usb").debug("of the successor")
    assert [line["text"] for line in lines(path)] == ["seen", "of the successor"]


def test_a_full_file_system_loses_lines_and_says_how_many(tmp_path: Path) -> None:
    path = tmp_path / "usb.log"
    log = Log(path, "usb")
    good, log._fd = log._fd, os.open("/dev/full", os.O_WRONLY)
    log.info("lost")
    log.info("lost too")
    os.close(log._fd)
    log._fd = good
    log.info("there")
    log.info("again")
    assert [(line["text"], line.get("lost")) for line in lines(path)] == [("there", 2), ("again", None)]


def test_the_file_is_cut_over_and_a_reader_misses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LOG_BYTES", 1000)
    log = Log(tmp_path / "usb.log", "usb")
    tail, read = Tail([tmp_path / "usb.log"]), []
    for number in range(40):
        log.info(f"line {number}")
        if number % 3 == 0:
            read += tail.lines()
    read += tail.lines()
    assert [json.loads(line)["text"] for line in read] == [f"line {number}" for number in range(40)]
    assert (tmp_path / "usb.log.1").exists() and (tmp_path / "usb.log").stat().st_size <= 1200


def test_a_reader_gives_whole_lines_of_all_files_in_the_order_of_time(tmp_path: Path) -> None:
    one, two = Log(tmp_path / "a.log", "a"), Log(tmp_path / "b.log", "b")
    tail = Tail([tmp_path / "a.log", tmp_path / "b.log"])
    for number in range(3):
        one.info(f"{number}")
        two.info(f"{number}")
    with (tmp_path / "a.log").open("a") as file:
        file.write("half of")
        file.flush()
        texts = [json.loads(line)["text"] for line in tail.lines()]
        file.write(" a line\n")
    assert texts == ["0", "0", "1", "1", "2", "2"]
    assert tail.lines() == ["half of a line"]


def test_steps_of_an_io_go_nowhere_until_they_are_followed(log: Log, tmp_path: Path) -> None:
    follow.step("0000000a.80000001", "unseen")
    log.level = Level.TRACE
    follow.to(log)
    try:
        follow.step("0000000a.80000001", "taken", lba=8)
    finally:
        follow.to(None)
    follow.step("0000000a.80000001", "unseen")
    [line] = lines(tmp_path / "usb.log")
    assert (line["text"], line["io"], line["lba"], line["level"]) == ("taken", "0000000a.80000001", 8, "trace")


def test_request_ids_differ_between_sequences_and_generations_and_are_no_slot() -> None:
    ids = [follow.request_id(generation << 20, sequence) for generation in range(100) for sequence in range(1, 200)]
    assert len(set(ids)) == len(ids)
    assert all(limits.MAX_QUEUE_DEPTH <= number < 1 << 32 for number in ids)
    assert follow.request_id(1 << 60, (1 << 24) + 5) == follow.request_id(1 << 60, 5)  # 16 million I/Os later
    assert follow.io_id(0xA, 0x80000001) == "0000000a.80000001"


def test_journald_gets_one_datagram_with_fields_of_its_own(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(tmp_path / "socket"))
        Journal(str(tmp_path / "socket")).send(Level.WARNING, {"text": "a\nb", "role": "usb", "io": "1.2", "time": "t"})
        fields = journald.recv(4096).decode().splitlines()
    assert fields == ["MESSAGE=a\\nb", "PRIORITY=4", "SYSLOG_IDENTIFIER=replug", "REPLUG_ROLE=usb", "REPLUG_IO=1.2"]
    assert encode(Level.DEBUG, {"text": "x"}).splitlines()[1] == b"PRIORITY=7"


def test_a_journald_that_is_gone_or_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    Journal(str(tmp_path / "none")).send(Level.INFO, {"text": "unheard"})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(tmp_path / "socket"))
        journal = Journal(str(tmp_path / "socket"))
        for _ in range(3000):  # far more than its queue takes (net.unix.max_dgram_qlen)
            journal.send(Level.INFO, {"text": "unread"})
