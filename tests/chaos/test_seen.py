"""What people see of both sides, real processes over modelled kernels: one I/O followed, metrics, status in faults."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import tools
from bus.runtime import Runtime, Side, living, recorded_roles
from common.errors import Exit
from tests.chaos.workload import BLOCK
from tests.native.__main__ import images
from tests.native.bench import Bench, await_, bench
from tests.native.disk import ModelDisk
from tools.cli import main
from tools.cli.look import ask_all, look
from tools.cli.metrics import scrape
from tools.cli.pause import await_io

ROOT = Path(tools.__file__).parent.parent
GADGET, HOST = Runtime(Side.GADGET), Runtime(Side.HOST)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Both sides up, with two disks, idle."""
    with bench(images(tmp_path_factory.mktemp("files"))) as up:
        yield up


@pytest.fixture
def busy(here: Bench) -> Iterator[None]:
    """Somebody reads both disks all the time."""
    over, counts = threading.Event(), [0] * len(here.devices)

    def read(number: int, device: Path) -> None:
        disk, into = ModelDisk(device), memoryview(bytearray(BLOCK))
        while not over.is_set():
            assert disk.read(into, 0) == BLOCK
            counts[number] += 1
        disk.close()

    users = [threading.Thread(target=read, args=pair) for pair in enumerate(here.devices)]
    for user in users:
        user.start()
    await_(lambda: all(counts), "I/O")
    yield
    marks = list(counts)
    await_(lambda: all(count > mark for count, mark in zip(counts, marks, strict=True)), "I/O to go on")
    over.set()
    for user in users:
        user.join(20.0)


def replug(*words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-m", "tools.cli", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)


# -- one I/O through all processes -----------------------------------------------------------------------------------
def test_one_write_is_followed_through_all_processes_of_both_sides_under_one_id(here: Bench) -> None:
    disk = ModelDisk(here.devices[0])
    traces = [replug("trace", "--side", side, "--for", "3s") for side in Side]
    for runtime in (GADGET, HOST):
        await_(partial(_traced, runtime), "the levels to be lent")
    disk.write(memoryview(b"x" * BLOCK), 7 * BLOCK, False)
    steps = [json.loads(line) for trace in traces for line in trace.communicate(timeout=30)[0].splitlines()]
    [first] = [s for s in steps if s["text"] == "taken" and s["op"] == "write" and s["lba"] == 7]
    of_it = [(s["role"].partition(".")[0], s["text"]) for s in steps if s["io"] == first["io"]]
    assert of_it == [
        ("queue", "taken"), ("usb", "sent"), ("usb", "answered"), ("queue", "committed"),
        ("usb", "given to its source"), ("source", "done"), ("usb", "answering"),
    ]  # fmt: skip
    await_(lambda: _levels(GADGET) | _levels(HOST) == {"info"}, "the levels to be taken back")
    disk.write(memoryview(b"y" * BLOCK), 8 * BLOCK, False)
    assert not [line for runtime in (GADGET, HOST) for line in _lines(runtime) if '"lba":8,' in line], "off is off"
    disk.close()


def test_a_trace_whose_command_was_killed_ends_by_itself(here: Bench) -> None:
    trace = replug("trace", "--side", "gadget")
    await_(lambda: _levels(GADGET) == {"trace"}, "the levels to be lent")
    trace.kill()
    trace.communicate()
    await_(lambda: _levels(GADGET) == {"info"}, "the loan to end")


def test_a_level_is_set_by_command_and_kept_by_a_successor(here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log", "usb", "--side", "gadget", "--level", "debug"]) == Exit.DONE
    assert "usb: log level debug, was info" in capsys.readouterr().err
    _kill_and_await(GADGET, "usb")
    assert main(["log", "usb", "--side", "gadget", "--level", "info"]) == Exit.DONE
    assert "usb: log level info, was debug" in capsys.readouterr().err


def _traced(runtime: Runtime) -> bool:
    return _levels(runtime) == {"trace"}


def _levels(runtime: Runtime) -> set[str]:
    roles = [p.name for p in (runtime.root / "role").iterdir() if p.name.startswith(("usb", "queue.", "source."))]
    return {str(answer.get("log_level")) for answer in ask_all(runtime, roles).values() if isinstance(answer, dict)}


def _lines(runtime: Runtime) -> list[str]:
    return [line for path in runtime.root.glob("log/*.log") for line in path.read_text().splitlines()]


def _kill_and_await(runtime: Runtime, role: str) -> None:
    victim = living(runtime, role)
    assert victim is not None
    os.kill(victim.pid, signal.SIGKILL)

    def again() -> bool:
        record = living(runtime, role)
        return record is not None and record.pid != victim.pid and _state(runtime, role) == "running"

    await_(again, f"a successor of {role}")


def _state(runtime: Runtime, role: str) -> str:
    return next((str(row["state"]) for row in look(runtime)["processes"] if row["role"] == role), "unknown")


# -- commands to one role ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["restart", "drain", "kill"])
@pytest.mark.parametrize("kind", ["usb", "queue", "session", "watchdog", "spawner"])
def test_a_command_to_a_role_tells_what_happened_and_how_long_io_waited(
    here: Bench, busy: None, how: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    role = next(name for name in recorded_roles(GADGET) if name.partition(".")[0] == kind)
    before = living(GADGET, role)
    assert before is not None
    assert main([how, role, "--side", "gadget"]) == Exit.DONE
    told, after = capsys.readouterr().err, living(GADGET, role)
    assert after is not None and before.pid != after.pid
    words = {"restart": "restarted", "drain": "drained", "kill": "killed"}[how]
    pause = "" if kind in ("watchdog", "spawner") else r", paused \d+ ms"
    form = rf"replug: {re.escape(role)}: {words}: pid {before.pid} is now {after.pid}{pause}, ready after [\d.]+ m?s; "
    assert re.fullmatch(form + r"I/O waited for [\d.]+ m?s at most\n", told), told


def test_without_io_a_command_says_so(here: Bench) -> None:
    await_(lambda: _slowest_ms() == 0, "what was slow before to be forgotten")
    # Not by a whole command: a successor may have the session look for partitions, which is I/O.
    assert await_io(GADGET, "watchdog", None, time.monotonic(), print).told() == "; no I/O was under way"


def _slowest_ms() -> float:
    queues = [name for name in recorded_roles(GADGET) if name.startswith("queue.")]
    return max(float(answer["slowest_ms"]) for answer in ask_all(GADGET, queues).values())


# -- metrics ---------------------------------------------------------------------------------------------------------
_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\n"])*"'
_SAMPLE = re.compile(rf"({_NAME})(?:{{({_LABEL}(?:,{_LABEL})*)}})? (-?[0-9.e+-]+|[+-]Inf|NaN)")
_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}
Samples = dict[str, dict[str, float]]  # by name, then by labels


def parse(text: str) -> Samples:
    """Strictly, as the format's description has it: HELP and TYPE once and before the samples of each family."""
    assert text.endswith("\n")
    found: Samples = {}
    family = kind = ""
    seen: set[str] = set()
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("# HELP "):
            family = line.split(" ")[2]
            assert family not in seen and re.fullmatch(_NAME, family), line
            seen.add(family)
            words = next(lines).split(" ")
            assert words[:3] == ["#", "TYPE", family], words
            kind = words[3]
            assert (kind == "counter") == family.endswith("_total"), f"{family} is a {kind}"
            continue
        match = _SAMPLE.fullmatch(line)
        assert match is not None, line
        name, labels, value = match.groups()
        assert name in [family + suffix for suffix in _SUFFIXES[kind]], line
        assert labels not in found.setdefault(name, {}), f"twice: {line}"
        found[name][labels or ""] = float(value)
    return found


def test_metrics_of_both_sides_are_in_the_format_and_count_what_was_done(here: Bench) -> None:
    before = {runtime: parse(scrape(str(runtime.metrics_socket()))) for runtime in (GADGET, HOST)}
    disk = ModelDisk(here.devices[0])
    for block in range(10):
        disk.write(memoryview(b"z" * BLOCK), block * BLOCK, False)
    disk.close()
    for runtime, old in before.items():
        new = parse(scrape(str(runtime.metrics_socket())))
        written = [k for k in new["replug_export_bytes_total"] if 'direction="write"' in k]
        moved = sum(new["replug_export_bytes_total"][k] - old["replug_export_bytes_total"].get(k, 0) for k in written)
        assert moved == 10 * BLOCK, runtime.side
        assert new["replug_link_state"] == {'state="online"': 1, 'state="parked"': 0, 'state="absent"': 0}
        assert set(new["replug_process_answers"].values()) == {1}
        assert all(name.startswith("replug_") for name in new)
        export = next(k for k in new["replug_export_size_bytes"])
        buckets = [v for k, v in new["replug_export_latency_seconds_bucket"].items() if k.startswith(export + ",")]
        assert buckets == sorted(buckets) and buckets[-1] == new["replug_export_latency_seconds_count"][export]
        assert new["replug_export_latency_seconds_sum"][export] > 0


def test_the_command_prints_the_same_families_as_the_socket(here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metrics", "--side", "host"]) == Exit.DONE
    assert parse(capsys.readouterr().out).keys() == parse(scrape(str(HOST.metrics_socket()))).keys()


def test_a_role_that_is_stopped_is_told_as_silent_and_holds_nobody_up(here: Bench) -> None:
    record = living(GADGET, "usb")
    assert record is not None
    os.kill(record.pid, signal.SIGSTOP)
    try:
        assert parse(scrape(str(GADGET.metrics_socket())))["replug_process_answers"]['role="usb"'] == 0
    finally:
        os.kill(record.pid, signal.SIGCONT)


def test_metrics_outlive_the_session_that_serves_them(here: Bench) -> None:
    _kill_and_await(GADGET, "session")
    assert parse(scrape(str(GADGET.metrics_socket())))["replug_process_restarts_total"]['role="session"'] >= 1
