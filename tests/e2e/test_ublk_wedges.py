"""What wedges ublk on Linux 6.12 for good, each with the cure and, where a guest survives it, without (issue 3).

A test with the cure fails where it is taken away; its twin without it shows that the kernel still needs it. The others:
death between FETCH and START_DEV and death in recovery in test_ublk_binding.py, `/dev/ublkbN` held open at `down` in
test_main_path.py, SIGSTOP in test_recovery.py.
"""

import errno
import fcntl
import os
import time
from pathlib import Path

import pytest

from gadget.ublk.abi import DeviceState
from gadget.ublk.control import Control
from gadget.ublk.device import settle_queue_limits
from tests.e2e import ublk_lab
from tests.e2e.ublk_lab import (
    BLOCK,
    DEPTH,
    DEV_ID,
    RECOVERY_S,
    Child,
    Lab,
    Say,
    Shared,
    opened,
    pattern,
    told,
    until,
    void,
    write_at,
    write_many_at_once,
)

driver, lab, control = ublk_lab.driver, ublk_lab.lab, ublk_lab.control  # fixtures
BLKRRPART = 0x125F  # linux/fs.h
QUEUE = Path(f"/sys/block/ublkb{DEV_ID}/queue")
NOTHING_S = 1.0  # that something does not happen can only be waited for


# -- every tag in flight at a death --------------------------------------------------------------------------


def test_a_kill_with_every_tag_in_flight_goes_unnoticed_where_limits_are_not_settled(
    lab: Lab, control: Control
) -> None:
    server = lab.live()
    Path(f"/sys/block/ublkb{DEV_ID}/queue/io_timeout").write_text("1000")  # 30000 otherwise, too long for a test
    lab.shared["parked"] = 1
    writer = lab.child(write_many_at_once)
    server.expect(f"holding {DEPTH}")
    server.kill()
    lab.shared["parked"] = 0
    killed = time.monotonic()
    while time.monotonic() < killed + 0.3:
        told(
            errno.EBUSY,
            lambda: control.start_user_recovery(DEV_ID),
            "ublk START_USER_RECOVERY of device 48: ",
        )
        time.sleep(0.02)
    lab.live()
    print(f"recovered in {(time.monotonic() - killed) * 1000:.0f} ms")
    writer.expect("all written")


def test_kill_under_full_load_is_recovered_in_time_once_limits_are_settled(lab: Lab) -> None:
    server = lab.live()
    lab.child(lambda say: settle_queue_limits(DEV_ID, DEPTH)).wait()
    lab.shared["parked"] = 1
    writer = lab.child(write_many_at_once)
    server.expect(f"holding {DEPTH - 1}")
    killed = time.monotonic()
    server.kill()
    lab.shared["parked"] = 0
    lab.live()
    taken_s = time.monotonic() - killed
    print(f"recovered in {taken_s * 1000:.0f} ms")
    assert taken_s < RECOVERY_S
    writer.expect("all written")
    assert lab.shared.disk[: 2 * DEPTH * BLOCK] == b"".join(pattern(n, BLOCK) for n in range(2 * DEPTH))
    queue = Path(f"/sys/block/ublkb{DEV_ID}/queue")
    assert (queue / "nr_requests").read_text() == f"{DEPTH - 1}\n", "the limit survives recovery"
    assert "[none]" in (queue / "scheduler").read_text()


# -- START_DEV scans partitions ------------------------------------------------------------------------------


def write_partition_table(shared: Shared) -> None:
    first, blocks = 16, 64  # in logical blocks
    entry = bytes([0, 0, 0, 0, 0x83, 0, 0, 0]) + first.to_bytes(4, "little") + blocks.to_bytes(4, "little")
    shared.disk[:512] = bytes(446) + entry + bytes(48) + b"\x55\xaa"


def partitions() -> list[str]:
    return [entry.name for entry in Path(f"/sys/block/ublkb{DEV_ID}").glob(f"ublkb{DEV_ID}p*")]


def test_start_reads_nothing_and_scans_no_partitions(lab: Lab) -> None:
    write_partition_table(lab.shared)
    lab.live()
    fd = opened()
    told(errno.EINVAL, lambda: fcntl.ioctl(fd, BLKRRPART), "Invalid argument")
    os.close(fd)
    assert partitions() == []
    if not Path("/run/udev/control").exists():  # udev may read a new disk
        assert lab.shared["reads"] == 0


def test_with_the_capability_start_would_have_scanned(lab: Lab) -> None:
    write_partition_table(lab.shared)
    lab.server(trusted=True).expect("live")
    assert partitions() == [f"ublkb{DEV_ID}p1"]
    assert lab.shared["reads"] > 0


# -- nobody answers while a device starts --------------------------------------------------------------------


@pytest.mark.parametrize("killed", [False, True], ids=["living server", "dead server"])
def test_a_first_start_ends_while_no_host_answers_and_so_do_stop_and_delete(
    lab: Lab, control: Control, killed: bool
) -> None:
    """`control` raises TimeoutError for a command that hangs."""
    lab.shared["parked"] = 1
    server = lab.server()
    server.expect("live")
    if killed:
        server.kill()
    control.stop(DEV_ID)
    control.delete(DEV_ID)
    assert control.find(DEV_ID) is None
    assert lab.shared["reads"] == 0


def test_with_the_capability_start_and_stop_hang_while_no_host_answers(lab: Lab, control: Control) -> None:
    """Were the server killed now, they would hang for good: its death is handled under the mutex that START holds."""
    lab.shared["parked"] = 1
    server = lab.server(trusted=True)
    server.expect("holding 1")  # the scan's read
    impatient = Control(timeout_s=NOTHING_S)
    told(errno.ETIMEDOUT, lambda: impatient.stop(DEV_ID), "io_uring: no completion in ")
    with pytest.raises(AssertionError, match="waited for 'live'"):
        server.expect("live", NOTHING_S)
    lab.shared["parked"] = 0
    server.expect("live")
    until(lambda: control.info(DEV_ID).state is DeviceState.DEAD, "the STOP that waited to be done")


# -- a store into queue/* waits for I/O in flight ------------------------------------------------------------


def test_a_successor_settles_limits_that_are_right_without_waiting_for_io(lab: Lab) -> None:
    """It is asked to at each start, and the host may be away for hours: it must be ready meanwhile."""
    writer = settled_and_killed_in_flight(lab)
    settling = lab.child(lambda say: settle_queue_limits(DEV_ID, DEPTH))
    assert settling.wait() == 0
    assert lab.shared["writes"] == 0, "no I/O has gone on"
    lab.shared["parked"] = 0
    writer.expect("all written")


def test_a_store_of_the_value_that_is_there_would_wait_for_io(lab: Lab) -> None:
    writer = settled_and_killed_in_flight(lab)
    storing = lab.child(lambda say: void((QUEUE / "nr_requests").write_text(f"{DEPTH - 1}")))
    with pytest.raises(AssertionError, match="lives after"):
        storing.wait(NOTHING_S)
    lab.shared["parked"] = 0
    writer.expect("all written")
    assert storing.wait() == 0


def settled_and_killed_in_flight(lab: Lab) -> Child:
    """A device whose limits are right, with a successor that holds what its predecessor was killed with."""
    server = lab.live()
    assert lab.child(lambda say: settle_queue_limits(DEV_ID, DEPTH)).wait() == 0
    lab.shared["parked"] = 1
    writer = lab.child(write_many_at_once)
    server.expect(f"holding {DEPTH - 1}")
    server.kill()
    lab.server().expect(f"holding {DEPTH - 1}")  # given again, by END_USER_RECOVERY
    return writer


def write_one(say: Say) -> None:
    fd = opened()
    assert write_at(fd, 0, pattern(1, BLOCK)) == BLOCK
    say("written")


def test_a_server_killed_while_another_waits_to_store_is_recovered_in_time(lab: Lab) -> None:
    """A server that stored by itself would wait for itself, and could not even be killed."""
    server = lab.live()
    lab.shared["parked"] = 1
    writer = lab.child(write_one)
    server.expect("holding 1")
    settling = lab.child(lambda say: settle_queue_limits(DEV_ID, DEPTH))
    until(lambda: "freeze" in Path(f"/proc/{settling.pid}/wchan").read_text(), "the store to wait for the write")
    killed = time.monotonic()
    server.kill()
    lab.shared["parked"] = 0
    lab.live()
    assert time.monotonic() - killed < RECOVERY_S
    writer.expect("written")
    assert settling.wait() == 0
    assert (QUEUE / "nr_requests").read_text() == f"{DEPTH - 1}\n"
