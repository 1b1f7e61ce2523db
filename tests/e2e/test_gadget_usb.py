"""The gadget's USB side against a plain v0 host on the real kernel: descriptors, ep0, payloads, bad hosts."""

import errno
import mmap
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.runtime import Runtime, Side
from common import wire
from common.wire import ExportRecord, Ident, Op, Response
from gadget.usb.configfs import ROOT, GadgetTree
from tests.e2e.v0_host import V0Host, await_event, number
from tools.demo import inside

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]
RECORD = ExportRecord(0x5EED, 512, 8 << 20)
DEVICE = Path("/dev/ublkb0")


@pytest.fixture(scope="module")
def gadget() -> Iterator[Runtime]:
    up = inside.replug("gadget", "up", "--serial", "test1")
    assert up.returncode == 0, up.stderr
    yield Runtime(Side.GADGET)
    inside.replug("gadget", "down", "--force")
    inside._see_nothing_left()


@pytest.fixture
def host(gadget: Runtime) -> Iterator[V0Host]:
    """A host that has reset the device first, as one must that cannot know what its predecessor left."""
    host = V0Host(RECORD)
    host.device.reset()
    yield host
    host.leave()


def serving(host: V0Host) -> V0Host:
    host.configure()
    host.serve()
    await_event(f"{DEVICE}", openable)
    return host


def openable() -> bool:
    """The node comes a moment before its disk (ENXIO)."""
    try:
        os.close(os.open(DEVICE, os.O_RDONLY))
    except OSError:
        return False
    return True


def test_the_host_sees_smoos_interface_with_its_four_endpoints_in_order(host: V0Host) -> None:
    assert host.device.triple == (0xFF, 0x53, 0x4D)
    assert [(bool(e.address & 0x80), e.attributes) for e in host.device.endpoints] == [
        (True, 3),
        (False, 3),
        (True, 2),
        (False, 2),
    ]
    assert [e.max_packet for e in host.device.endpoints] == [512, 512, 512, 512]
    assert host.device.serial_number == "test1"


def test_ident_and_status_before_any_export(host: V0Host) -> None:
    assert host.ident() == Ident(0, 1)
    status = host.status()
    assert not status.active and status.session_id != 0


@pytest.mark.parametrize(("request_type", "request_number"), [(0xC1, 0x7F), (0x41, 0x01), (0xC1, 0x02), (0xA1, 0x01)])
def test_a_vendor_request_we_do_not_know_is_stalled(host: V0Host, request_type: int, request_number: int) -> None:
    with pytest.raises(OSError) as caught:
        host.device.control(request_type, request_number, 8 if request_type & 0x80 else b"12345678")
    assert caught.value.errno == errno.EPIPE
    assert host.ident() == Ident(0, 1)


@pytest.mark.parametrize(
    "data",
    [b"\0", bytes.fromhex("0900 0100 00000000"), bytes.fromhex("0000 2000 00000000"), b"\xff" * wire.CONFIG_MAX_BYTES],
    ids=["short", "version", "count without records", "noise"],
)
def test_a_malformed_config_changes_nothing_and_the_next_one_works(host: V0Host, data: bytes) -> None:
    host.send_config(data)
    assert not host.status().active
    host.configure()
    assert host.status().export_count == 1


def test_a_config_longer_than_any_legal_one_is_stalled(host: V0Host) -> None:
    with pytest.raises(OSError) as caught:
        host.send_config(bytes(wire.CONFIG_MAX_BYTES + 1))
    assert caught.value.errno == errno.EPIPE


@pytest.mark.parametrize("size_bytes", [512, 1024, 1536, 65024, 65536, 66048, 131072])
def test_payloads_of_every_shape_arrive_whole_in_both_directions(host: V0Host, size_bytes: int) -> None:
    serving(host)
    data, offset = os.urandom(size_bytes), 512 * 3
    fd = os.open(DEVICE, os.O_RDWR | os.O_DIRECT | os.O_SYNC)
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
def test_the_hosts_errno_fails_that_request_and_no_other(host: V0Host, number: int) -> None:
    serving(host)
    host.status_of = lambda request: number if request.op is Op.WRITE and request.lba == 8 else 0
    fd = os.open(DEVICE, os.O_RDWR | os.O_DIRECT)  # the page cache would make EIO of any errno
    try:
        buffer = mmap.mmap(-1, 4096)
        with pytest.raises(OSError) as caught:
            os.pwritev(fd, [buffer], 8 * 512)
        assert caught.value.errno == number
        assert os.pwritev(fd, [buffer], 16 * 512) == 4096
    finally:
        os.close(fd)


def test_a_fua_write_is_a_write_and_a_flush_to_a_v0_host(host: V0Host) -> None:
    """Issue 4, items 1 and 6: v0 has no FUA, and the promise is kept all the same."""
    serving(host)
    fd = os.open(DEVICE, os.O_RDWR | os.O_DIRECT | os.O_DSYNC)
    try:
        at = len(host.requests)
        assert os.pwritev(fd, [mmap.mmap(-1, 4096)], 0) == 4096
        asked = [(request.op, request.flags) for request in host.requests[at:] if request.op is not Op.READ]
        # The second FLUSH is the block layer's own: blkdev_write_iter flushes behind its FUA write.
        assert asked == [(Op.WRITE, 0), (Op.FLUSH, 0), (Op.FLUSH, 0)]
    finally:
        os.close(fd)


def test_a_write_refused_before_its_payload_was_taken_does_not_disturb_the_next(host: V0Host) -> None:
    serving(host)
    host.answers_early = True
    host.status_of = lambda request: errno.ENOSPC if request.op is Op.WRITE and request.lba == 0 else 0
    fd = os.open(DEVICE, os.O_RDWR | os.O_DIRECT)
    try:
        buffer = mmap.mmap(-1, 131072)
        with pytest.raises(OSError) as caught:
            os.pwritev(fd, [buffer], 0)
        assert caught.value.errno == errno.ENOSPC
        buffer[:] = b"\xa5" * 131072
        assert os.pwritev(fd, [buffer], 131072) == 131072
        assert bytes(host.data[131072:262144]) == b"\xa5" * 131072
    finally:
        os.close(fd)


def test_a_host_that_configures_anew_after_data_moved_sees_one_re_enumeration(host: V0Host) -> None:
    serving(host)
    before = host.number
    subprocess.run(["dd", f"if={DEVICE}", "of=/dev/null", "bs=4096", "count=4", "iflag=direct"], check=True)
    host.send_config(wire.ConfigExports((RECORD,)).encode())
    await_event("the link to end", lambda: host.ended)
    await_event("a new enumeration", lambda: number() not in (None, before))
    again = V0Host(RECORD)
    serving(again)
    subprocess.run(["dd", f"if={DEVICE}", "of=/dev/null", "bs=4096", "count=4", "iflag=direct"], check=True)
    again.leave()


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 27, b"\xff" * 28, Response(Op.READ, 0, 3, 0x5EED, 0, 1).encode(), b"\0" * 29],
    ids=["empty", "short", "noise", "answers nothing", "long"],
)
def test_a_response_that_makes_no_sense_starts_the_link_over_and_loses_nothing(host: V0Host, data: bytes) -> None:
    serving(host)
    before = host.number
    host.respond(data)
    await_event("the link to end", lambda: host.ended)
    await_event("a new enumeration", lambda: number() not in (None, before))
    again = V0Host(RECORD)
    again.data[:4096] = b"\x5a" * 4096
    serving(again)
    done = subprocess.run(["dd", f"if={DEVICE}", "bs=4096", "count=1", "iflag=direct"], check=True, capture_output=True)
    assert done.stdout == b"\x5a" * 4096
    again.leave()


def test_a_discard_reaches_a_v0_host_and_one_that_cannot_do_it_is_no_error(host: V0Host) -> None:
    """Issue 4, item 6: v0 does not say what its host can, so the device may ask for everything."""
    serving(host)
    discard = ["blkdiscard", "--offset", str(1 << 20), "--length", str(1 << 20), str(DEVICE)]
    subprocess.run(discard, check=True)
    asked = [(r.lba, r.blocks) for r in host.requests if r.op is Op.DISCARD]
    assert sum(blocks for _, blocks in asked) == (1 << 20) // 512 and min(asked)[0] == (1 << 20) // 512
    host.status_of = lambda request: errno.EOPNOTSUPP if request.op is Op.DISCARD else 0
    subprocess.run(discard, check=True)  # to the block layer it is a hint
    assert host.requests[-1].op is Op.DISCARD
    subprocess.run(["dd", f"if={DEVICE}", "of=/dev/null", "bs=4096", "count=4", "iflag=direct"], check=True)


def test_zeroes_are_written_out_to_a_v0_host_which_has_no_word_for_them(host: V0Host) -> None:
    """Issue 4, item 6."""
    host.data[:] = b"\xa5" * len(host.data)
    serving(host)
    subprocess.run(["blkdiscard", "-z", "--offset", "65536", "--length", str(1 << 20), str(DEVICE)], check=True)
    assert bytes(host.data[65536 : 65536 + (1 << 20)]) == bytes(1 << 20)
    assert set(host.data[:65536]) == {0xA5} == set(host.data[65536 + (1 << 20) :])
    assert Op.WRITE_ZEROES not in {request.op for request in host.requests}


def test_what_a_v0_host_leaves_out_is_parked_until_it_is_there_again(host: V0Host) -> None:
    """Issue 4, item 6: v0 cannot say that an export was removed for good, so its device stays and its I/O waits."""
    serving(host)
    host.leave()
    none = V0Host(RECORD)
    none.send_config(wire.ConfigExports(()).encode())
    await_event("the empty set to be in force", lambda: none.status().active)
    [export] = inside.status(Side.GADGET)["exports"]
    assert export["state"] == "parked" and DEVICE.exists()
    read = subprocess.Popen(["dd", f"if={DEVICE}", "bs=4096", "count=1", "iflag=direct"], stdout=subprocess.PIPE)
    none.leave()
    again = V0Host(RECORD)
    again.data[:4096] = b"\x5a" * 4096
    assert read.poll() is None, "it was not failed meanwhile"
    serving(again)
    assert read.communicate(timeout=60)[0] == b"\x5a" * 4096
    again.leave()


def test_an_export_of_another_size_never_becomes_the_device(host: V0Host) -> None:
    serving(host)
    host.leave()
    other = V0Host(ExportRecord(RECORD.export_id, 512, 4 << 20))
    other.send_config(wire.ConfigExports((other.record,)).encode())
    await_event("the set to be decided", lambda: other.status().active)
    assert other.status().export_count == 0
    [export] = inside.status(Side.GADGET)["exports"]
    assert export["state"] == "parked" and "another disk" in export["reason"]
    assert int((Path("/sys/block") / DEVICE.name / "size").read_text()) * 512 == RECORD.size_bytes
    other.leave()


@pytest.mark.parametrize("steps", range(8))
def test_any_half_built_gadget_tree_can_be_removed(steps: int, tmp_path: Path) -> None:
    tree = GadgetTree("half", "none", 1, 2, "s", "p", tmp_path / "ffs")
    root = ROOT / "usb_gadget" / "half"
    inside_tree = [root, root / "strings/0x409", root / "configs/c.1", root / "functions/ffs.half"]
    for directory in inside_tree[:steps]:
        directory.mkdir(parents=True)
    if steps > 4:
        (root / "configs/c.1/ffs.half").symlink_to(root / "functions/ffs.half")
    if steps > 5:
        tree.mount_point.mkdir()
    if steps > 6:
        tree.create()
    tree.remove()
    assert not root.exists() and not tree.mount_point.exists()
