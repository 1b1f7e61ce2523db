"""What a queue does with the device it finds, and parameters to and from the kernel's form. No kernel needed."""

import ctypes
import os
import struct
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import Illegal
from common.syscalls import syscall
from gadget.ublk import abi
from gadget.ublk.control import RECOVERABLE, DeviceInfo, DeviceParams, Plan, plan
from gadget.ublk.device import QueueDevice, settle_queue_limits, without_sys_admin
from gadget.ublk.mark import export_of, ownership_mark

OURS = DeviceInfo(3, 16, 131072, flags=RECOVERABLE | abi.Feature.CMD_IOCTL_ENCODE, mark=ownership_mark("one", 7))


@pytest.mark.parametrize(
    ("info", "wanted"),
    [
        (None, Plan.ADD),
        (replace(OURS, state=abi.DeviceState.LIVE), Plan.RECOVER),
        (replace(OURS, state=abi.DeviceState.QUIESCED), Plan.RECOVER),
        (replace(OURS, state=abi.DeviceState.DEAD), Plan.RECREATE),
        (replace(OURS, state=abi.DeviceState.FAIL_IO), Plan.FOREIGN),
        (replace(OURS, state=17), Plan.FOREIGN),
        (replace(OURS, mark=ownership_mark("one", 8)), Plan.FOREIGN),
        (replace(OURS, mark=ownership_mark("two", 7)), Plan.FOREIGN),
        (replace(OURS, mark=0, state=abi.DeviceState.DEAD), Plan.FOREIGN),
        (replace(OURS, mark=7), Plan.FOREIGN),
        (replace(OURS, flags=int(abi.Feature.USER_RECOVERY)), Plan.FOREIGN),
    ],
)
def test_plan_follows_from_mark_flags_and_state(info: DeviceInfo | None, wanted: Plan) -> None:
    assert plan(info, OURS.mark) is wanted


def test_every_state_has_a_plan() -> None:
    assert all(plan(replace(OURS, state=state), OURS.mark) in Plan for state in abi.DeviceState)


def test_mark_tells_the_export_to_its_own_instance_only() -> None:
    mark = ownership_mark("one", 7)
    assert mark >> 48 == 0x5250 and mark < 1 << 64
    assert export_of(mark, "one") == 7
    assert export_of(mark, "two") is None
    assert export_of(7, "one") is None and export_of(0, "one") is None


@pytest.mark.parametrize("export_id", [0, -1, 1 << 32])
def test_mark_refuses_what_is_no_export_id(export_id: int) -> None:
    with pytest.raises(ValueError, match="export id"):
        ownership_mark("one", export_id)


def test_parameters_survive_the_kernels_form() -> None:
    params = DeviceParams(64 << 20, 4096, 128 << 10, read_only=True, volatile_cache=False, fua=False)
    assert DeviceParams.from_abi(params.to_abi()) == params
    params = replace(params, discard_granularity_bytes=4096, max_discard_bytes=1 << 20, max_write_zeroes_bytes=1 << 19)
    assert DeviceParams.from_abi(params.to_abi()) == params


def test_parameters_announce_cache_and_fua_by_default() -> None:
    raw = DeviceParams(64 << 20, 512, 128 << 10).to_abi()
    assert raw.basic.attrs == abi.Attribute.VOLATILE_CACHE | abi.Attribute.FUA
    assert (raw.basic.logical_bs_shift, raw.basic.dev_sectors, raw.basic.max_sectors) == (9, 131072, 256)
    assert (raw.types, raw.len) == (abi.ParamType.BASIC, ctypes.sizeof(abi.ublk_params))


@pytest.mark.parametrize(
    ("size_bytes", "block_size", "max_io_bytes"), [(4096, 1000, 4096), (1000, 512, 4096), (4096, 4096, 512)]
)
def test_parameters_that_cannot_be_expressed_are_refused(size_bytes: int, block_size: int, max_io_bytes: int) -> None:
    with pytest.raises(ValueError, match=r"block size 1000 is not|size \d+ or \d+: no multiple"):
        DeviceParams(size_bytes, block_size, max_io_bytes).to_abi()


@pytest.mark.parametrize("depth", [4, 4097])
def test_queue_depth_past_the_limits_is_refused_before_anything_is_opened(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"queue depth {depth}: not in 5\.\.4096"):
        QueueDevice(0, depth)


@pytest.mark.parametrize("tag", [-1, 0, 8])
def test_commit_of_a_tag_that_is_not_ours_is_refused(tag: int) -> None:
    device = QueueDevice.__new__(QueueDevice)  # not opened: nothing may reach a kernel
    device.dev_id, device.depth, device._owner = 0, 8, bytearray(8)
    with pytest.raises(Illegal, match=f"ublk device 0: commit of tag {tag}"):
        device.commit(tag, 0)


def effective_capabilities() -> int:
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    syscall("capget", ctypes.addressof(header), ctypes.addressof(sets))
    return sets[0]


@pytest.mark.skipif(not effective_capabilities() & 1 << 21, reason="needs CAP_SYS_ADMIN to show that it is lowered")
def test_capability_is_lowered_in_this_thread_only_and_for_a_while_only() -> None:
    before = effective_capabilities()
    asked, seen, done = threading.Event(), [], threading.Event()

    def other() -> None:
        asked.wait()
        seen.append(effective_capabilities())
        done.set()

    threading.Thread(target=other, daemon=True).start()
    with without_sys_admin():
        assert effective_capabilities() == before & ~(1 << 21)
        asked.set()
        assert done.wait(10)
    assert effective_capabilities() == before
    assert seen == [before]


def queue_directory(tmp_path: Path, scheduler: str, nr_requests: str) -> Path:
    queue = tmp_path / "ublkb3" / "queue"
    queue.mkdir(parents=True)
    (queue / "scheduler").write_text(scheduler)
    (queue / "nr_requests").write_text(nr_requests)
    return queue


def test_limits_keep_one_tag_idle(tmp_path: Path) -> None:
    queue = queue_directory(tmp_path, "", "")
    settle_queue_limits(3, 16, tmp_path)
    assert (queue / "scheduler").read_text() == "none"
    assert (queue / "nr_requests").read_text() == "15"


def test_limits_that_are_right_are_not_stored_again_for_each_store_freezes_the_queue(tmp_path: Path) -> None:
    queue = queue_directory(tmp_path, "[none] mq-deadline \n", "15\n")
    before = [os.stat(queue / name).st_mtime_ns for name in ("scheduler", "nr_requests")]
    settle_queue_limits(3, 16, tmp_path)
    assert [os.stat(queue / name).st_mtime_ns for name in ("scheduler", "nr_requests")] == before


def test_limits_of_a_missing_disk_are_told_enoent_and_of_a_shallow_queue_einval(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        settle_queue_limits(9, 16, tmp_path)
    with pytest.raises(OSError, match="queue depth 4: below 5") as caught:
        settle_queue_limits(3, 4, tmp_path)
    assert caught.value.errno == 22


def test_io_sqe_command_area_begins_at_48() -> None:
    assert struct.unpack_from("<I", abi.IO_SQE.pack(*range(13), 0xBEEF, 0xAA, 0, 0), 48) == (0x00AABEEF,)
