"""What people see of both sides, real processes over modelled kernels: one I/O followed, metrics, status in faults."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import tools
from bus.runtime import Runtime, Side, living
from common.errors import Exit
from tests.chaos.workload import BLOCK
from tests.native.__main__ import images
from tests.native.bench import Bench, await_, bench
from tests.native.disk import ModelDisk
from tools.cli import main
from tools.cli.metrics import scrape

ROOT = Path(tools.__file__).parent.parent
GADGET, HOST = Runtime(Side.GADGET), Runtime(Side.HOST)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Both sides up, with two disks, idle."""
    with bench(images(tmp_path_factory.mktemp("files"))) as up:
        yield up


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
    from tools.cli.look import ask_all

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
    from tools.cli.look import look

    return next((str(row["state"]) for row in look(runtime)["processes"] if row["role"] == role), "unknown")


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
