"""`replug status`: a document as its schema says, a stream for pipes, and a command that starts fast."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import tools
from bus.control import ask
from bus.runtime import Runtime, Side, living
from common.errors import Exit
from common.limits import BEAT_S
from tools.cli import main
from tools.cli.document import DOCUMENT, faults, json_schema, reference
from tools.cli.look import ANSWER_S, QUIET_S, held_up, look
from tools.cli.side import bring_up, take_down
from tools.supervise.launch import all_living, await_deaths, kill
from tools.supervise.plan import Plan, RoleSpec

ROOT = Path(tools.__file__).parent.parent
COMMAND = [sys.executable, "-m", "tools.cli"]


@pytest.fixture
def runtime(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    monkeypatch.setenv("REPLUG_RUNTIME", str(tmp_path_factory.mktemp("r")))
    runtime = Runtime(Side.HOST)
    yield runtime
    if runtime.root.exists():
        take_down(runtime)


@pytest.fixture
def side(runtime: Runtime) -> Iterator[Runtime]:
    roles = (RoleSpec("usb", "tests.unit.roles.steady"), RoleSpec("source.disk", "tests.unit.roles.counting"))
    session = RoleSpec("session", "tests.unit.roles.telling", {"exports": [{"name": "disk", "role": "source.disk"}]})
    spawner = bring_up(Plan(Side.HOST, "default", (*roles, session)), runtime)
    yield runtime
    if runtime.root.exists():
        take_down(runtime)
    spawner.wait(5.0)


# -- the document ----------------------------------------------------------------------------------------------------
def test_the_document_of_a_running_side_is_as_the_schema_says(side: Runtime) -> None:
    document = look(side)
    assert faults(document) == []
    assert document["state"] == "healthy"
    export = document["exports"][0]
    assert (export["read_iops"], export["counters"]["read_bytes"], export["latency_ms"]["p50"]) == (10, 40960, 0.768)


def test_what_programs_read_is_there_whatever_is_known(side: Runtime) -> None:
    kill([record for role in ("source.disk", "session", "usb") if (record := living(side, role)) is not None])
    for document in (look(side), look(Runtime(Side.GADGET))):
        assert faults(document) == []
        assert set(document["link"]) >= {"state", "since", "peer", "speed", "epoch"}
        for export in document["exports"]:
            assert set(export) >= {"in_flight", "read_iops", "write_iops", "read_bytes_s", "write_bytes_s"}


def test_the_document_where_nothing_runs_is_as_the_schema_says(
    runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--json"]) == Exit.DOWN
    document = json.loads(capsys.readouterr().out)
    assert faults(document) == []
    assert (document["state"], document["side"], document["reason"]) == ("down", None, "nothing runs")


def test_the_document_of_a_side_whose_supervision_is_dead_says_so(side: Runtime) -> None:
    records = all_living(side)
    kill(records)
    assert await_deaths(records, 10.0)
    document = look(side)
    assert faults(document) == []
    assert (document["state"], document["reason"]) == ("down", "its supervision is dead: start the side again")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"state": "fine"}, ".state: 'fine' is none of ('healthy', 'degraded', 'down')"),
        ({"version": "1"}, ".version: '1' is not integer"),
        ({"version": True}, ".version: True is not integer"),
        ({"colour": 1}, ".colour: not in the schema"),
        ({"processes": {}}, ".processes[0].role: missing"),
    ],
)
def test_what_is_not_as_the_schema_says_is_found(runtime: Runtime, change: dict[str, Any], fault: str) -> None:
    assert fault in faults({**look(runtime), **change})


def test_a_missing_field_is_found(runtime: Runtime) -> None:
    document = look(runtime)
    del document["link"]
    assert faults(document) == [".link: missing"]


def test_the_reference_page_is_the_one_made_from_the_schema() -> None:
    assert (ROOT / "docs" / "status-json.md").read_text() == reference()


def test_the_schema_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--schema"]) == Exit.DONE
    schema = json.loads(capsys.readouterr().out)
    assert schema == json_schema()
    assert set(schema["properties"]) == {name.rstrip("?") for name in DOCUMENT}


# -- who does not answer ---------------------------------------------------------------------------------------------
def test_a_stopped_role_makes_the_look_neither_long_nor_blind(side: Runtime) -> None:
    pid = next(row["pid"] for row in look(side)["processes"] if row["role"] == "source.disk")
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        document = look(side)
        assert time.monotonic() - began < QUIET_S + 0.7
    finally:
        os.kill(pid, signal.SIGCONT)
    assert faults(document) == []
    assert document["exports"][0]["read_iops"] is None, "it is not known, and not 0"


def test_a_stopped_session_is_named(side: Runtime) -> None:
    pid = next(row["pid"] for row in look(side)["processes"] if row["role"] == "session")
    os.kill(pid, signal.SIGSTOP)
    try:
        document = look(side)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert document["state"] == "degraded"
    assert re.fullmatch(r"session does not answer since \d\d:\d\d:\d\d: stopped by a signal", document["reason"])
    assert {row["role"] for row in document["processes"]} >= {"session", "usb", "source.disk"}


@pytest.mark.parametrize(("busy_s", "silent"), [(2 * QUIET_S, False), (2 * ANSWER_S, True)])
def test_a_role_that_misses_a_moment_is_not_slandered_and_one_that_hangs_is_told(
    runtime: Runtime, busy_s: float, silent: bool
) -> None:
    session = RoleSpec("session", "tests.unit.roles.telling", {"exports": [{"name": "disk", "role": "source.disk"}]})
    busy = RoleSpec("usb", "tests.unit.roles.busy")
    spawner = bring_up(Plan(Side.HOST, "default", (busy, session)), runtime)
    try:
        with ThreadPoolExecutor() as pool:
            began = datetime.now(UTC)
            call = pool.submit(ask, runtime, "usb", "work", {"for_s": busy_s}, 30.0)
            while not (runtime.root / "busy").exists():  # it has begun
                assert not call.done() or call.result()
            document = look(runtime)
            call.result()
        assert faults(document) == []
        row = next(row for row in document["processes"] if row["role"] == "usb")
        assert (document["state"], row["answers"]) == ("degraded" if silent else "healthy", not silent)
        if silent:
            assert row["reason"] == "busy, or it hangs"
            told, export = datetime.fromisoformat(row["silent_since"]), document["exports"][0]
            assert began - timedelta(seconds=BEAT_S + 0.5) < told < datetime.now(UTC) - timedelta(seconds=QUIET_S)
            assert (export["state"], export["since"]) == ("recovering", row["silent_since"])
            assert re.fullmatch(r"usb does not answer since \d\d:\d\d:\d\d: busy, or it hangs", export["reason"])
    finally:
        take_down(runtime)
        spawner.wait(5.0)


def test_what_runs_is_told_without_any_supervision(side: Runtime) -> None:
    before = {row["role"]: row for row in look(side)["processes"]}
    dead = [record for role in ("watchdog", "spawner", "twin") if (record := living(side, role)) is not None]
    kill(dead)
    assert await_deaths(dead, 10.0)
    document = look(side)
    assert faults(document) == []
    assert document["state"] == "degraded"
    assert document["reason"].startswith("its supervision is dead, and what else dies is not started again: ")
    rows = {row["role"]: row for row in document["processes"]}
    assert {role for role, row in rows.items() if row["state"] == "running"} == {"usb", "source.disk", "session"}
    for role in ("usb", "source.disk", "session"):
        assert (rows[role]["pid"], rows[role]["generation"]) == (before[role]["pid"], before[role]["generation"])
    for role in ("watchdog", "spawner"):
        assert (rows[role]["state"], rows[role]["pid"]) == ("failed", None) and rows[role]["since"]
    assert (document["link"]["state"], document["exports"][0]["state"]) == ("online", "live")


def test_what_runs_keeps_its_since_when_the_watchdog_is_replaced(side: Runtime) -> None:
    def since(document: dict[str, Any]) -> str:
        return next(str(row["since"]) for row in document["processes"] if row["role"] == "usb")

    def near(a: str, b: str) -> bool:
        return abs(datetime.fromisoformat(a).timestamp() - datetime.fromisoformat(b).timestamp()) < 0.1

    before = since(look(side))
    assert main(["kill", "watchdog"]) == Exit.DONE
    deadline = time.monotonic() + 20.0
    while (document := look(side))["state"] != "healthy":
        assert time.monotonic() < deadline, document
    assert near(since(document), before)


# -- for pipes -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("state", "shown"), [("starting", "recovering"), ("stuck", "parked"), ("failed", "failed")])
def test_an_export_tells_what_its_process_waits_for(state: str, shown: str) -> None:
    """Nothing is being replaced while a killed process does not die."""
    row = {"role": "source.a", "state": state, "since": "2026-11-30T07:00:00+00:00", "last_exit": "", "reason": "why"}
    told = held_up({"role": "source.a", "state": "live"}, [row])
    assert (told["state"], told["since"]) == (shown, row["since"])
    assert told["reason"].startswith(f"source.a is {state} since ") and told["reason"].endswith(": why")


def test_watch_tells_a_kill_as_lines(side: Runtime) -> None:
    with subprocess.Popen(
        [*COMMAND, "status", "--watch", "--interval", "100ms"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as watch:
        try:
            assert watch.stdout is not None
            assert "host:default healthy, link online, disk live read 40.0K/s" in watch.stdout.readline()
            assert main(["kill", "usb"]) == Exit.DONE
            lines: list[str] = []  # of the kill: one or, if a look fell between the death and the successor, two
            while not (lines and "respawned in" in lines[-1]):
                line = watch.stdout.readline()
                assert line, "the stream ended"
                lines += [line] if " usb " in line else []
            assert "usb killed by signal 9" in lines[0]
        finally:
            watch.kill()


def test_watch_outlives_the_side_and_each_line_is_a_document(side: Runtime) -> None:
    with subprocess.Popen(
        [*COMMAND, "status", "--json", "--watch", "--interval", "100ms"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as watch:
        try:
            assert watch.stdout is not None
            assert json.loads(watch.stdout.readline())["state"] == "healthy"
            take_down(side)
            document: dict[str, Any] = {}
            while document.get("state") != "down":
                document = json.loads(watch.stdout.readline())
                assert faults(document) == []
        finally:
            watch.kill()


def test_an_interval_that_would_be_a_load_is_refused(runtime: Runtime, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--watch", "--interval", "49ms"]) == Exit.BAD_INPUT
    assert capsys.readouterr().err.startswith("replug: --interval 0.049s: below 50ms")


# -- fast ------------------------------------------------------------------------------------------------------------
def test_status_takes_at_most_three_times_as_long_as_importing_zmq(side: Runtime) -> None:
    """Taken in turns, and the best of each, of processor time: what is compared is work, not what else goes on here.

    That it does not wait either is judged by the clock in a look where all answer (ANSWER_S bounds those that do not).
    """

    def took_s(command: list[str]) -> tuple[float, float]:
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        assert subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0
        wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, wall

    bare, status = (0.0, 0.0), (9.0, 9.0)
    for _ in range(40):  # until one pair of quiet moments is found; each of them has been seen by then, or it is slow
        one, other = took_s([sys.executable, "-c", "import zmq"]), took_s([*COMMAND, "status"])
        bare = one if bare[0] == 0.0 else (min(bare[0], one[0]), min(bare[1], one[1]))
        status = min(status[0], other[0]), min(status[1], other[1])
        if status[0] <= 3 * bare[0] and status[1] <= 3 * bare[1]:
            return
    told = [f"{work * 1000:.0f} ms of work in {wall * 1000:.0f} ms" for work, wall in (status, bare)]
    raise AssertionError(f"status {told[0]}, import zmq {told[1]}")
