"""The ublk binding on the real driver: I/O, kills at every stage, recovery, removal. No bus, no roles, no USB.

The server is tests.e2e.ublk_lab's. What wedges the kernel, and what keeps it from that, has a file of its own.
"""

import errno
import mmap
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import Gone
from gadget.ublk.abi import DeviceState, Feature
from gadget.ublk.control import RECOVERABLE, Control, DeviceParams, Plan, plan
from gadget.ublk.device import QueueDevice, settle_queue_limits
from tests.e2e import ublk_lab
from tests.e2e.ublk_lab import (
    BLOCK,
    DEADLINE_S,
    DEPTH,
    DEV_ID,
    DISK,
    MARK,
    MAX_IO,
    PARAMS,
    RECOVERY_S,
    SIZE,
    Lab,
    devices,
    is_newer,
    opened,
    pattern,
    read_at,
    read_whole_disk,
    retry,
    told,
    until,
    write_and_verify,
    write_at,
)

driver, lab, control = ublk_lab.driver, ublk_lab.lab, ublk_lab.control  # fixtures
BLKRRPART = 0x125F  # linux/fs.h


# -- I/O -----------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_back_and_lies_where_it_should(lab: Lab) -> None:
    lab.live()
    fd = opened()
    try:
        for offset, size_bytes in (
            (0, BLOCK),
            (MAX_IO, MAX_IO),
            (SIZE - BLOCK, BLOCK),
            (2 * MAX_IO, 4 * MAX_IO),
        ):
            data = pattern(offset, size_bytes)
            assert write_at(fd, offset, data) == size_bytes
            assert lab.shared.disk[offset : offset + size_bytes] == data
            assert read_at(fd, offset, size_bytes) == data
    finally:
        os.close(fd)


def test_fsync_arrives_as_flush_and_a_dsync_write_with_fua(lab: Lab) -> None:
    lab.live()
    fd = opened()
    try:
        write_at(fd, 0, bytes(BLOCK))
        assert (lab.shared["flushes"], lab.shared["fua"]) == (0, 0)
        os.fsync(fd)
        assert lab.shared["flushes"] == 1
        write_at(fd, 0, bytes(BLOCK), os.RWF_DSYNC)
        assert lab.shared["fua"] == 1
    finally:
        os.close(fd)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_an_error_reaches_the_writer_with_its_errno_and_nobody_else(lab: Lab, code: int) -> None:
    lab.live()
    fd = opened()
    try:
        lab.shared["write_errno"] = code
        with pytest.raises(OSError, match=os.strerror(code)) as caught:
            write_at(fd, 0, bytes(BLOCK))
        assert caught.value.errno == code
        assert read_at(fd, 0, BLOCK) == bytes(BLOCK)
        lab.shared["write_errno"] = 0
        assert write_at(fd, 0, bytes(BLOCK)) == BLOCK
    finally:
        os.close(fd)


# -- recovery ------------------------------------------------------------------------------------------------


def test_kill_with_an_idle_tag_left_is_recovered_in_time_and_the_reader_never_notices(lab: Lab) -> None:
    for offset in range(0, SIZE, MAX_IO):
        lab.shared.disk[offset : offset + MAX_IO] = pattern(offset, MAX_IO)
    server = lab.live()
    reader = lab.child(read_whole_disk)
    for stop in range(4):
        reader.expect(f"read {stop * 10 * MAX_IO}")
        lab.shared["parked"] = 1
        server.expect("holding 1")
        killed = time.monotonic()
        server.kill()
        lab.shared["parked"] = 0
        server = lab.server()
        server.expect("plan RECOVER")
        server.expect("live")
        taken_s = time.monotonic() - killed
        print(f"recovered in {taken_s * 1000:.0f} ms")
        assert taken_s < RECOVERY_S
    reader.expect("all right")
    assert reader.wait() == 0


@pytest.mark.parametrize("stage", ["added", "begun", "fetched"])
def test_killed_before_the_disk_exists_it_is_dead_and_made_again(lab: Lab, control: Control, stage: str) -> None:
    first = lab.server(stop_at=stage)
    first.expect(stage)
    first.kill()
    info = control.info(DEV_ID)
    assert (info.state, info.mark) == (DeviceState.DEAD, MARK)
    second = lab.server()
    second.expect("plan RECREATE")
    second.expect("live")


@pytest.mark.parametrize("stage", ["begun", "fetched", "live"])
def test_killed_during_recovery_the_next_one_recovers(lab: Lab, control: Control, stage: str) -> None:
    lab.shared.disk[:BLOCK] = pattern(1, BLOCK)
    lab.live().kill()
    second = lab.server(stop_at=stage)
    second.expect(stage)
    second.kill()
    third = lab.server()
    third.expect("plan RECOVER")
    if stage == "begun" and not is_newer(control):
        third.expect("recovery had begun")
    third.expect("live")
    fd = opened()
    assert read_at(fd, 0, BLOCK) == pattern(1, BLOCK)
    os.close(fd)


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment_from_the_first_start_on_the_disk_comes_back_whole(lab: Lab, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(8):  # some of these die before there is a disk
        server = lab.server()
        time.sleep(chance.uniform(0, 0.08))
        server.kill()
    server = lab.live()
    lab.child(lambda say: settle_queue_limits(DEV_ID, DEPTH)).wait()
    writer = lab.child(lambda say: write_and_verify(say, seed))
    writer.expect("round 0")
    for _ in range(12):
        time.sleep(chance.uniform(0, 0.12))
        server.kill()
        server = lab.server()
    server.expect("live")
    os.kill(writer.pid, signal.SIGTERM)
    writer.expect("verified", 2 * DEADLINE_S)


def test_a_forked_child_of_the_server_does_not_block_recovery(lab: Lab) -> None:
    server = lab.server(linger=True)
    said = [server.expect(("child ", "live")) for _ in range(2)]  # two threads tell them
    [child] = [line for line in said if line.startswith("child ")]
    lingering = int(child.split()[1])
    try:
        server.kill()
        assert "ublkc" not in " ".join(links(lingering)), "the child holds the device"
        lab.server().expect("live", RECOVERY_S)
    finally:
        os.kill(lingering, signal.SIGKILL)


def links(pid: int) -> list[str]:
    descriptors = Path(f"/proc/{pid}/fd")
    return [os.readlink(entry) for entry in descriptors.iterdir()] + [Path(f"/proc/{pid}/maps").read_text()]


# -- what commands are told ----------------------------------------------------------------------------------


def test_start_user_recovery_is_told_ebusy_while_the_owner_lives(lab: Lab, control: Control) -> None:
    lab.live()
    told(errno.EBUSY, lambda: control.start_user_recovery(DEV_ID), "ublk START_USER_RECOVERY of device 48: ")


def test_a_second_start_user_recovery_changes_nothing_and_recovery_goes_on(lab: Lab, control: Control) -> None:
    lab.live().kill()
    retry(lambda: control.start_user_recovery(DEV_ID), errno.EBUSY)
    if is_newer(control):
        control.start_user_recovery(DEV_ID)
    else:
        told(errno.EINVAL, lambda: control.start_user_recovery(DEV_ID), "ublk START_USER_RECOVERY of device 48: ")
    lab.server().expect("live")


def test_start_user_recovery_of_a_device_made_without_it_is_told_einval(lab: Lab, control: Control) -> None:
    info = control.add(DEV_ID, DEPTH, MAX_IO, MARK, flags=0)
    assert plan(info, MARK) is Plan.FOREIGN
    told(errno.EINVAL, lambda: control.start_user_recovery(DEV_ID), "ublk START_USER_RECOVERY of device 48: ")


def test_commands_for_a_missing_device_are_told_enodev(control: Control) -> None:
    assert control.find(DEV_ID) is None
    commands: list[Callable[[int], object]] = [
        control.info,
        control.get_params,
        control.delete,
        control.delete_async,
        control.stop,
        control.start_user_recovery,
        lambda dev_id: control.start(dev_id, 1),
        lambda dev_id: control.end_user_recovery(dev_id, 1),
        lambda dev_id: control.set_params(dev_id, PARAMS),
    ]
    for command in commands:
        told(errno.ENODEV, lambda command=command: command(DEV_ID), "ublk [A-Z_0-9]+ of device 48: ")  # type: ignore[misc]
    told(errno.ENOENT, lambda: QueueDevice(DEV_ID, DEPTH), "No such file")


def test_the_char_device_opens_once(lab: Lab) -> None:
    lab.live()
    told(errno.EBUSY, lambda: QueueDevice(DEV_ID, DEPTH), "Device or resource busy")


def test_info_gives_back_what_was_added(lab: Lab, control: Control) -> None:
    server = lab.live()
    info = control.info(DEV_ID)
    assert (info.dev_id, info.depth, info.max_io_bytes, info.hw_queues) == (DEV_ID, DEPTH, MAX_IO, 1)
    assert (info.state, info.pid, info.mark) == (DeviceState.LIVE, server.pid, MARK)
    assert info.flags & RECOVERABLE == RECOVERABLE
    assert control.get_params(DEV_ID) == PARAMS
    assert plan(info, MARK + 1) is Plan.FOREIGN


def test_features_include_what_we_need(control: Control) -> None:
    assert Feature.USER_RECOVERY | Feature.USER_RECOVERY_REISSUE | Feature.CMD_IOCTL_ENCODE in control.features()


def test_a_taken_id_is_told_eexist_and_a_started_device_takes_no_parameters(lab: Lab, control: Control) -> None:
    lab.live()
    told(errno.EEXIST, lambda: control.add(DEV_ID, DEPTH, MAX_IO, 0), "ublk ADD_DEV of device 48: ")
    told(errno.EACCES, lambda: control.set_params(DEV_ID, PARAMS), "ublk SET_PARAMS of device 48: ")
    started = errno.EINVAL if is_newer(control) else errno.EEXIST
    told(started, lambda: control.start(DEV_ID, os.getpid()), "ublk START_DEV of device 48: ")
    told(
        errno.EBUSY,
        lambda: control.end_user_recovery(DEV_ID, os.getpid()),
        "ublk END_USER_RECOVERY of device 48: ",
    )


def test_a_block_size_above_the_page_is_told_einval(lab: Lab, control: Control) -> None:
    control.add(DEV_ID, DEPTH, MAX_IO, MARK)
    control.set_params(DEV_ID, DeviceParams(SIZE, mmap.PAGESIZE, MAX_IO))
    too_large = DeviceParams(SIZE, 2 * mmap.PAGESIZE, MAX_IO)
    told(errno.EINVAL, lambda: control.set_params(DEV_ID, too_large), "ublk SET_PARAMS of device 48: ")


def test_a_command_that_does_not_end_is_told_etimedout_and_closes_the_control(lab: Lab, control: Control) -> None:
    control.add(DEV_ID, DEPTH, MAX_IO, MARK)
    control.set_params(DEV_ID, PARAMS)
    impatient = Control(timeout_s=0.05)
    told(errno.ETIMEDOUT, lambda: impatient.start(DEV_ID, os.getpid()), "io_uring: no completion in 0.05 s")
    with pytest.raises(Gone, match="ublk control: closed"):
        impatient.info(DEV_ID)


# -- stop, removal -------------------------------------------------------------------------------------------


def test_stop_ends_the_servers_fetches_and_leaves_a_dead_device(lab: Lab, control: Control) -> None:
    server = lab.live()
    control.stop(DEV_ID)
    server.expect("stopped")
    assert server.wait() == 0
    assert (control.info(DEV_ID).state, control.info(DEV_ID).pid) == (DeviceState.DEAD, -1)
    assert not os.path.exists(DISK)
    control.stop(DEV_ID)
    control.delete(DEV_ID)
    assert control.find(DEV_ID) is None


def test_waiting_io_fails_with_eio_when_a_device_without_server_is_removed(lab: Lab, control: Control) -> None:
    server = lab.live()
    lab.shared["parked"] = 1
    reader = lab.child(read_whole_disk)
    server.expect("holding 1")
    server.kill()
    control.delete_async(DEV_ID)
    assert "OSError: [Errno 5]" in reader.expect("failed: ")


def test_async_delete_returns_while_the_disk_is_held_open_and_the_id_is_free_after(lab: Lab, control: Control) -> None:
    server = lab.live()
    fd = opened()
    try:
        server.kill()
        control.delete_async(DEV_ID)
        assert f"ublkc{DEV_ID}" not in devices()
        assert not os.path.exists(DISK)
        told(errno.ENOENT, lambda: control.info(DEV_ID), "ublk GET_DEV_INFO2 of device 48: ")
        told(errno.EEXIST, lambda: control.add(DEV_ID, DEPTH, MAX_IO, 0), "ublk ADD_DEV of device 48: ")
        # Not EIO: del_gendisk sets the size to 0, and a reader that trusts a short read calls this the end.
        assert os.preadv(fd, [mmap.mmap(-1, BLOCK)], 0) == 0
        told(errno.ENOSPC, lambda: write_at(fd, 0, bytes(BLOCK)), "No space left on device")
    finally:
        os.close(fd)
    until(lambda: control.find(DEV_ID) is None, "the id to be free")
    lab.server().expect("live")
