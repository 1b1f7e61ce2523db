"""Rows of the fault table beyond one process: two at once, a whole side at once, a process that is stopped.

The same disk, the same reading and writing dd through all of them, judged byte by byte at the end.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bus.runtime import Runtime, Side, living
from common import limits
from gadget.usb import mm_hold
from tests.e2e.v0_host import enumerated
from tools.demo import faults, inside
from tools.supervise.launch import all_living, await_deaths
from tools.supervise.launch import kill as kill_records

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
DISK_BYTES, SCRATCH_BYTES = 16 << 20, 12 << 20
G, H = Side.GADGET, Side.HOST


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[inside.Bench]:
    work = tmp_path_factory.mktemp("recovery")
    (work / "disk.img").write_bytes(os.urandom(DISK_BYTES))
    (work / "scratch.img").write_bytes(bytes(SCRATCH_BYTES))
    with inside.both_sides(work / "disk.img", work / "scratch.img") as both:
        yield both


@pytest.fixture(scope="module")
def load(bench: inside.Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[inside.Load]:
    load = inside.Load(bench, tmp_path_factory.mktemp("load"))
    yield load
    load.stop()


@pytest.mark.parametrize(
    "roles",
    [
        [(G, "queue"), (G, "usb")],
        [(G, "usb"), (H, "usb")],
        [(H, "usb"), (H, "source.disk")],
        [(G, "session"), (G, "usb")],
        [(H, "session"), (H, "usb")],
        [(G, "watchdog"), (G, "queue")],
        [(G, "spawner"), (G, "usb")],
        [(G, "spawner"), (G, "watchdog")],
    ],
    ids=lambda roles: " and ".join(f"{side} {role}" for side, role in roles),
)
def test_both_dds_go_on_after_two_are_killed_at_once(
    roles: list[tuple[Side, str]], bench: inside.Bench, load: inside.Load
) -> None:
    named = [(side, bench.image_role if role == "queue" else role) for side, role in roles]
    inside.strike(load, faults.kill_all(named))


def test_a_kill_of_the_gadgets_usb_leaves_the_usb_device_where_it_is(bench: inside.Bench, load: inside.Load) -> None:
    """Issue 3, item 2: no re-enumeration, so not a new address either; the host's interface stays claimed."""
    assert inside.status(G)["link"]["peer"] == inside.status(H)["link"]["peer"] == "v1"
    place = enumerated()
    assert place is not None
    before = (place / "devnum").read_text()
    for _ in range(3):
        inside.strike(load, faults.kill_all([(G, "usb")]))
        assert (place / "devnum").read_text() == before
    assert len(mm_hold.left(Runtime(G), "usb")) == 1, "those that held a dead usb's memory are still there"


def whole_side(side: Side, again: list[str]) -> faults.Fault:
    """kill -9 of everything of a side at once, then the command that brings it up."""
    runtime = Runtime(side)
    records = all_living(runtime)

    def strike() -> None:
        kill_records(records)
        assert await_deaths(records, limits.DEATH_S)
        done = subprocess.run([sys.executable, "-m", "tools.cli", *again], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    return faults.Fault(f"kill -9 of the whole {side} side", strike, tuple((side, r.role) for r in records))


def test_gadget_up_takes_back_the_same_devices_after_the_whole_side_was_killed(
    bench: inside.Bench, load: inside.Load
) -> None:
    before = sorted(p.name for p in Path("/dev").glob("ublkb*"))
    session = inside.status(G)["session_id"]
    inside.strike(load, whole_side(G, ["gadget", "up"]))
    assert sorted(p.name for p in Path("/dev").glob("ublkb*")) == before
    assert inside.status(G)["session_id"] == session


@pytest.mark.parametrize(
    "ruin", [lambda data: data[: len(data) // 2], lambda data: b"", None], ids=["torn", "empty", "gone"]
)
def test_gadget_up_finds_its_devices_in_the_kernel_when_the_state_file_is(
    ruin: Callable[[bytes], bytes] | None, bench: inside.Bench, load: inside.Load
) -> None:
    before = sorted(p.name for p in Path("/dev").glob("ublkb*"))
    session, path = inside.status(G)["session_id"], Runtime(G).state_path()
    fault = whole_side(G, ["gadget", "up"])

    def strike() -> None:
        records = all_living(Runtime(G))
        kill_records(records)
        assert await_deaths(records, limits.DEATH_S)
        data = path.read_bytes()
        path.unlink()
        if ruin is not None:
            path.write_bytes(ruin(data))
        fault.strike()

    inside.strike(load, faults.Fault("whole gadget side and its state file", strike, fault.victims))
    assert sorted(p.name for p in Path("/dev").glob("ublkb*")) == before
    assert inside.status(G)["session_id"] != session


def test_host_serve_goes_on_after_the_whole_side_was_killed(bench: inside.Bench, load: inside.Load) -> None:
    records = all_living(Runtime(H))

    def strike() -> None:
        kill_records(records)
        bench.serve.kill()
        bench.serve.wait()
        assert await_deaths(records, limits.DEATH_S)
        bench.serve = subprocess.Popen(
            [sys.executable, "-m", "tools.cli", "host", "serve", str(bench.image), str(bench.scratch)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    fault = faults.Fault("kill -9 of the whole host side", strike, tuple((H, r.role) for r in records))
    inside.strike(load, fault)


@pytest.mark.parametrize(("side", "role"), [(G, "usb"), (H, "source.disk")])
def test_a_stopped_process_is_replaced_and_does_nothing_when_it_would_wake_up(
    side: Side, role: str, bench: inside.Bench, load: inside.Load
) -> None:
    record = living(Runtime(side), role)
    assert record is not None
    stop = faults.Fault(f"SIGSTOP of {side} {role}", lambda: os.kill(record.pid, signal.SIGSTOP), ((side, role),))
    inside.strike(load, stop)
    assert not Path(f"/proc/{record.pid}").exists()  # killed before its successor was forked, so it cannot wake up


def test_every_byte_was_right_through_all_of_it(load: inside.Load) -> None:
    load.finish()
    assert load.verified_bytes >= DISK_BYTES + SCRATCH_BYTES
