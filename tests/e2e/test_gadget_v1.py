"""The gadget with a wire v1 host on the real kernel: payloads, and its usb killed while the USB device stays there."""

import errno
import mmap
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bus.runtime import Runtime, Side, living
from common.wire import ExportRecord, Op
from common.wire_v1 import CONTROL_TYPE_V1, ControlV1, ExportFlag, ExportV1, Hello, RequestFlag
from tests.e2e.v0_host import V0Host, await_event, number
from tests.e2e.v1_host import V1Host
from tools.demo import inside

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]
RECORD = ExportRecord(0x5EED, 512, 8 << 20)
DEVICE = Path("/dev/ublkb0")
MIB = 1 << 20


@pytest.fixture(scope="module")
def gadget() -> Iterator[Runtime]:
    up = inside.replug("gadget", "up", "--serial", "test1")
    assert up.returncode == 0, up.stderr
    yield Runtime(Side.GADGET)
    inside.replug("gadget", "down", "--force")
    inside._see_nothing_left()


@pytest.fixture
def host(gadget: Runtime) -> Iterator[V1Host]:
    host = V1Host(RECORD)
    yield host
    host.leave()


def direct(flags: int = 0) -> int:
    def opened() -> int | None:
        try:
            return os.open(DEVICE, os.O_RDWR | os.O_DIRECT | flags)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENXIO):  # ENXIO: the node is there, its disk almost
                raise
            return None

    fd = await_event(f"{DEVICE}", opened)
    assert fd is not None
    return fd


def kill_usb(gadget: Runtime) -> None:
    """kill -9, and wait until its successor is there."""
    record = living(gadget, "usb")
    assert record is not None
    os.kill(record.pid, signal.SIGKILL)

    def replaced() -> bool:
        now = living(gadget, "usb")
        return now is not None and now.pid != record.pid

    await_event("usb's successor", replaced)


def test_the_gadget_says_that_it_speaks_v1_and_still_speaks_v0(host: V1Host) -> None:
    assert host.hello() == Hello()
    assert host.ident().major == 0


@pytest.mark.parametrize("size_bytes", [512, 4096, 65024, 65536 - 512, 65536, 131072])
def test_payloads_of_every_shape_arrive_whole_in_both_directions(host: V1Host, size_bytes: int) -> None:
    host.online()
    data, offset = os.urandom(size_bytes), 512 * 3
    fd = direct(os.O_SYNC)
    try:
        buffer = mmap.mmap(-1, size_bytes)
        buffer.write(data)
        assert os.pwritev(fd, [buffer], offset) == size_bytes
        assert bytes(host.data[offset : offset + size_bytes]) == data
        host.data[offset : offset + size_bytes] = changed = data[::-1]
        assert os.preadv(fd, [buffer], offset) == size_bytes
        assert buffer[:] == changed
    finally:
        os.close(fd)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_the_hosts_errno_fails_that_request_and_no_other(host: V1Host, number: int) -> None:
    host.online()
    host.refuse = lambda record: number if record.op is Op.WRITE and record.lba == 8 else 0
    fd = direct()
    try:
        buffer = mmap.mmap(-1, 4096)
        with pytest.raises(OSError) as caught:
            os.pwritev(fd, [buffer], 8 * 512)
        assert caught.value.errno == number
        assert os.pwritev(fd, [buffer], 16 * 512) == 4096
    finally:
        os.close(fd)


def test_usb_is_killed_in_the_middle_of_a_dd_and_the_usb_device_stays_where_it_is(
    gadget: Runtime, host: V1Host, tmp_path: Path
) -> None:
    """Issue 3, item 2: endpoint descriptors from the store, resynchronised in band, everything outstanding replayed."""
    host.online()
    before = number()
    host.data[:] = expected = os.urandom(RECORD.size_bytes)
    await_event(f"{DEVICE}", DEVICE.exists)
    writing, written = os.urandom(2 * MIB), 6 * MIB
    for kill in range(3):
        host.resynced.clear()
        at = len(host.records)
        reader = subprocess.Popen(
            ["dd", f"if={DEVICE}", f"of={tmp_path}/read", "bs=64k", f"count={4 * MIB >> 16}", "iflag=direct"],
            stderr=subprocess.DEVNULL,
        )
        writer = subprocess.Popen(
            ["dd", f"of={DEVICE}", "bs=64k", f"seek={written >> 16}", "oflag=direct"],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert writer.stdin is not None
        await_event("I/O on the wire", lambda at=at: len(host.records) > at + 4)
        kill_usb(gadget)
        writer.stdin.write(writing)
        writer.stdin.close()
        assert writer.wait(60) == 0 and reader.wait(60) == 0
        assert host.resynced.wait(20), "the host's transfers were not halted"
        assert host.resyncs == kill + 1
        assert (tmp_path / "read").read_bytes() == expected[: 4 * MIB]
        assert bytes(host.data[written : written + 2 * MIB]) == writing
        assert number() == before


def test_usb_is_killed_while_nothing_is_asked_and_the_next_io_goes_on(gadget: Runtime, host: V1Host) -> None:
    host.online()
    before = number()
    fd = direct()
    try:
        kill_usb(gadget)
        host.data[:4096] = b"\x77" * 4096
        buffer = mmap.mmap(-1, 4096)
        assert os.preadv(fd, [buffer], 0) == 4096
        assert buffer[:] == b"\x77" * 4096 and number() == before
    finally:
        os.close(fd)


def cut(frame: bytes) -> bytes:
    return frame[:-5]


def doubled(frame: bytes) -> bytes:
    return frame + frame


def of_another_epoch(frame: bytes) -> bytes:
    return frame[:8] + bytes([frame[8] ^ 1]) + frame[9:]


def unasked(frame: bytes) -> bytes:
    return frame[:28] + b"\xff\xff\xff\x0f" + frame[32:]


@pytest.mark.parametrize("spoil", [cut, doubled, of_another_epoch, unasked, lambda frame: b"x"])
def test_a_frame_that_cannot_be_is_refused_and_costs_a_resynchronisation_but_no_io(host: V1Host, spoil: object) -> None:
    host.online()
    before, spoilt = number(), threading.Event()

    def once(frame: bytes) -> bytes:
        if spoilt.is_set():
            return frame
        spoilt.set()
        return spoil(frame)  # type: ignore[operator, no-any-return]

    fd = direct()
    try:
        host.data[4096:8192] = b"\x5a" * 4096
        host.spoil = once
        buffer = mmap.mmap(-1, 4096)
        assert os.preadv(fd, [buffer], 4096) == 4096
        assert buffer[:] == b"\x5a" * 4096
        assert host.resyncs == 1 and number() == before
    finally:
        os.close(fd)


def test_the_same_epoch_again_replaces_the_set_without_disturbing_what_runs(host: V1Host) -> None:
    host.online()
    other = replace(host.exports[0], record=ExportRecord(0xBEEF, 512, 1 << 20), name="other")
    host.exports = (*host.exports, other)
    host.announce()
    await_event("the second device", Path("/dev/ublkb1").exists)
    assert host.resyncs == 0 and host.status().export_count == 2
    names = {export["name"] for export in inside.status(Side.GADGET)["exports"]}
    assert names == {"disk", "other"}


def test_a_read_only_export_is_a_read_only_block_device(host: V1Host) -> None:
    """Issue 4, item 1."""
    host.online()
    rom = ExportV1(ExportRecord(0xB00C, 512, 1 << 20), ExportFlag.READ_ONLY, name="rom")
    host.exports = (*host.exports, rom)
    host.announce()

    def device() -> Path | None:
        host.status()  # a silent host parks
        found = [e for e in inside.status(Side.GADGET)["exports"] if e["name"] == "rom" and e["state"] == "live"]
        return Path(found[0]["device"]) if found and found[0]["read_only"] else None

    node = await_event("the read-only device", device)
    assert node is not None
    assert (Path("/sys/block") / node.name / "ro").read_text().strip() == "1"
    with node.open("r+b", buffering=0) as disk:
        assert len(disk.read(4096)) == 4096
        with pytest.raises(PermissionError):
            disk.write(bytes(512))


def test_fua_and_flush_reach_the_host_and_a_plain_write_has_neither(host: V1Host) -> None:
    """Issue 4, item 1."""
    host.online()
    assert (Path("/sys/block") / DEVICE.name / "queue/fua").read_text().strip() == "1"
    assert (Path("/sys/block") / DEVICE.name / "queue/write_cache").read_text().strip() == "write back"
    buffer = mmap.mmap(-1, 4096)
    synced = [(Op.WRITE, int(RequestFlag.FUA)), (Op.FLUSH, 0)]  # blkdev_write_iter flushes behind its own FUA
    for flags, expected in ((0, [(Op.WRITE, 0)]), (os.O_DSYNC, synced)):
        at = len(host.records)
        fd = direct(flags)
        try:
            assert os.pwritev(fd, [buffer], 0) == 4096
            assert [(r.op, r.mark) for r in host.records[at:] if r.op is not Op.READ] == expected
        finally:
            os.close(fd)
    fd = direct()
    try:
        os.pwritev(fd, [buffer], 0)
        os.fsync(fd)
        assert [r.op for r in host.records if r.op is not Op.READ][-1] is Op.FLUSH  # partitions may just be looked for
    finally:
        os.close(fd)


@pytest.mark.parametrize("data", [b"", b"\0" * 40, b"\xff" * 200])
def test_a_malformed_config_changes_nothing(host: V1Host, data: bytes) -> None:
    host.online()
    kind = CONTROL_TYPE_V1[ControlV1.CONFIG]
    host.device.control(kind, ControlV1.CONFIG, data)
    assert host.status().active
    fd = direct()
    try:
        assert os.preadv(fd, [mmap.mmap(-1, 4096)], 0) == 4096
    finally:
        os.close(fd)


def test_a_config_longer_than_any_legal_one_is_stalled(host: V1Host) -> None:
    with pytest.raises(OSError) as caught:
        host.device.control(CONTROL_TYPE_V1[ControlV1.CONFIG], ControlV1.CONFIG, bytes(3000))
    assert caught.value.errno == errno.EPIPE


def test_a_v0_host_after_a_v1_host_is_served_and_a_kill_of_usb_re_enumerates(gadget: Runtime, host: V1Host) -> None:
    """Issue 3, item 3: a v0 peer notices nothing of v1, and has no boundary in band."""
    host.online()
    host.leave()
    v0 = V0Host(RECORD)
    v0.device.reset()
    v0.data[:4096] = b"\x11" * 4096
    v0.configure()
    v0.serve()
    fd = direct()
    try:
        buffer = mmap.mmap(-1, 4096)
        assert os.preadv(fd, [buffer], 0) == 4096 and buffer[:] == b"\x11" * 4096
        before = number()
        kill_usb(gadget)
        await_event("the link to end", lambda: v0.ended)
        await_event("a new enumeration", lambda: number() not in (None, before))
        again = V0Host(RECORD)
        again.data[:4096] = b"\x22" * 4096
        again.configure()
        again.serve()
        assert os.preadv(fd, [buffer], 0) == 4096 and buffer[:] == b"\x22" * 4096
        again.leave()
    finally:
        os.close(fd)
