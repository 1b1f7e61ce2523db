"""Rows of the fault table beyond one process: two at once, a whole side at once, a process that is stopped.

The same disk, the same reading and writing dd through all of them, judged byte by byte at the end.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bus.runtime import Runtime, Side, living
from common import limits
from common.wire import ExportRecord
from gadget.session.state import Device, State
from gadget.ublk.control import Control
from gadget.ublk.mark import ownership_mark
from gadget.usb import mm_hold
from tests.chaos.stages import Stage, Way, await_state
from tests.e2e.v0_host import enumerated
from tools.cli.devices import marked
from tools.demo import faults, inside
from tools.supervise.launch import all_living, await_deaths
from tools.supervise.launch import kill as kill_records

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
DISK_BYTES, SCRATCH_BYTES = 16 << 20, 12 << 20
STRAY = 50  # a device number that nobody else has
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

    def strike() -> None:
        killed(side)
        done = subprocess.run([sys.executable, "-m", "tools.cli", *again], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    victims = tuple((side, record.role) for record in all_living(Runtime(side)))
    return faults.Fault(f"kill -9 of the whole {side} side", strike, victims)


def killed(side: Side) -> None:
    records = all_living(Runtime(side))
    kill_records(records)
    assert await_deaths(records, limits.DEATH_S)


def devices() -> list[str]:
    """Character devices are there from ADD_DEV on, disks from START_DEV on."""
    return sorted(path.name for path in Path("/dev").glob("ublk[bc]*"))


def see_one_device_for_each_export() -> None:
    """Of status and of the kernel, which knows ours by their marks."""
    exports = inside.status(G)["exports"]
    assert len(exports) == len({export["id"] for export in exports}) == 2
    assert [f"/dev/ublkb{number}" for number in marked("default")] == sorted(export["device"] for export in exports)


def test_gadget_up_takes_back_the_same_devices_after_the_whole_side_was_killed(
    bench: inside.Bench, load: inside.Load
) -> None:
    before, session = devices(), inside.status(G)["session_id"]
    inside.strike(load, whole_side(G, ["gadget", "up"]))
    assert devices() == before
    see_one_device_for_each_export()
    assert inside.status(G)["session_id"] == session


@pytest.mark.parametrize("point", ["queue.fetching", "queue.fetched"])
def test_gadget_up_takes_back_the_devices_of_a_side_killed_with_a_queue_half_through_recovery(
    point: str, bench: inside.Bench, load: inside.Load
) -> None:
    """Issue 3, item 5: the queue was killed, and its successor is between START_USER_RECOVERY and END_USER_RECOVERY."""
    before, session = devices(), inside.status(G)["session_id"]
    fault = whole_side(G, ["gadget", "up"])

    def strike() -> None:
        await_state(Stage(G, bench.image_role, point, Way.BIRTH).reach("stop"), "T")
        fault.strike()

    inside.strike(load, faults.Fault(f"the whole gadget side at {point}", strike, fault.victims))
    assert devices() == before
    see_one_device_for_each_export()
    assert inside.status(G)["session_id"] == session


def of_another_instance(data: bytes) -> bytes:
    """A sound one: an export that is not ours, and one of ours under a number that is another's."""
    state = State.decode(data)
    strange = Device("feed", ExportRecord(0xFEED, 4096, 1 << 20), 40)
    return replace(state, devices=(strange, replace(state.devices[0], ublk_id=41)), instance="other").encode()


@pytest.mark.parametrize(
    ("ruin", "why"),
    [
        (lambda data: data[: len(data) // 2], "not ours or torn"),
        (lambda data: b"", "not ours or torn"),
        (None, ""),
        (lambda data: data.replace(b'"version": 1', b'"version": 0'), "is of version 0, not 1"),
        (of_another_instance, "is of instance other, not default"),
    ],
    ids=["torn", "empty", "gone", "of an older version", "of another instance"],
)
def test_gadget_up_finds_its_devices_in_the_kernel_when_the_state_file_is(
    ruin: Callable[[bytes], bytes] | None, why: str, bench: inside.Bench, load: inside.Load
) -> None:
    before, session, path = devices(), inside.status(G)["session_id"], Runtime(G).state_path()
    unreadable = path.with_suffix(".unreadable")
    unreadable.unlink(missing_ok=True)
    fault = whole_side(G, ["gadget", "up"])

    def strike() -> None:
        killed(G)
        data = path.read_bytes()
        path.unlink()
        if ruin is not None:
            path.write_bytes(ruin(data))
        with Control() as control:  # a queue killed right after ADD_DEV, whose export only that file knew
            control.add(STRAY, 8, limits.MAX_IO_BYTES, ownership_mark("default", 0xBAD))
        fault.strike()

    inside.strike(load, faults.Fault("whole gadget side and its state file", strike, fault.victims))
    assert devices() == before
    see_one_device_for_each_export()
    assert inside.status(G)["session_id"] != session
    assert unreadable.exists() == (ruin is not None)
    log = Runtime(G).log_path("session").read_text()
    assert why in log, "the operator is told what was wrong with it"
    assert f"ublk device {STRAY} of export 0xbad never had a disk" in log


def test_gadget_up_goes_on_with_a_state_file_of_the_first_releases(bench: inside.Bench, load: inside.Load) -> None:
    """They wrote neither whose it is nor all that is known of a device today."""
    before, session, path = devices(), inside.status(G)["session_id"], Runtime(G).state_path()
    fault = whole_side(G, ["gadget", "up"])

    def strike() -> None:
        killed(G)
        fields = json.loads(path.read_bytes())
        known = ("name", "export_id", "block_size", "size_bytes", "ublk_id")
        fields["devices"] = [{name: device[name] for name in known} for device in fields["devices"]]
        del fields["instance"]
        path.write_text(json.dumps(fields))
        fault.strike()

    inside.strike(load, faults.Fault("whole gadget side, replaced by a later release", strike, fault.victims))
    assert devices() == before
    see_one_device_for_each_export()
    assert inside.status(G)["session_id"] == session


def test_host_serve_goes_on_after_the_whole_side_was_killed(bench: inside.Bench, load: inside.Load) -> None:
    victims = tuple((H, record.role) for record in all_living(Runtime(H)))

    def strike() -> None:
        bench.serve.kill()
        bench.serve.wait()
        killed(H)
        bench.serve = subprocess.Popen(
            [sys.executable, "-m", "tools.cli", "host", "serve", str(bench.image), str(bench.scratch)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    fault = faults.Fault("kill -9 of the whole host side", strike, victims)
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
