"""A real disk (issue 4): what users see of its blocks, byte by byte; file systems under fio over a pulled cable.

Block sizes (item 1), discard and write-zeroes (item 1) of a file, a loop device and an overlay (item 2), fio with
crc32c on ext4 and xfs (what it must show), an image that its host has mounted (item 5). All over one pair of sides.
"""

import fcntl
import mmap
import os
import random
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bus.runtime import Side
from tests.e2e.hostile import dice
from tests.e2e.v0_host import await_event
from tools.demo import dd, faults, inside

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
MIB, PAGE = 1 << 20, 4096
SIZE = 2 * MIB
WHOLE_BYTES = 304 * MIB  # sparse; the least that mkfs.xfs takes is 300 MB
BLOCK_SIZES = (512, 1024, 2048, 4096)
BLKDISCARD, BLKZEROOUT = 0x1277, 0x127F  # linux/fs.h: u64[2], start and length
FIO = """
[global]
directory={place}
verify=crc32c
verify_fatal=1
verify_backlog=32
time_based=1
runtime=1d
rw=randwrite
bssplit=4k/60:16k/30:64k/10
thread=1
[direct]
ioengine=libaio
direct=1
iodepth=4
size=2m
nrfiles=2
fsync=16
[buffered]
size=1m
fsync=8
"""
FIO_INTERRUPTED = 128  # fio's exit status after SIGINT, when all else was well


@dataclass
class Disks:
    """Both sides up; `devices` by name of the export, `images` the host's files, `content` what was in them."""

    work: Path
    loop: str = ""
    images: dict[str, Path] = field(default_factory=dict)
    content: dict[str, bytes] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)

    def image(self, name: str) -> Path:
        self.content[name] = os.urandom(SIZE)
        self.images[name] = self.work / f"{name}.img"
        self.images[name].write_bytes(self.content[name])
        return self.images[name]

    def host(self, *arguments: str) -> None:
        done = inside.replug("host", *arguments)
        assert done.returncode == 0, done.stderr

    def find(self, count: int) -> bool:
        exports = [e for e in inside.status(Side.GADGET)["exports"] if e["state"] == "live"]
        self.devices = {e["name"]: e["device"] for e in exports}
        return len(exports) == count and all(map(openable, self.devices.values()))


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disks]:
    disks = Disks(tmp_path_factory.mktemp("disks"))
    with (disks.work / "whole.img").open("wb") as sparse:
        sparse.truncate(WHOLE_BYTES)
    try:
        up = inside.replug("gadget", "up")
        assert up.returncode == 0, up.stderr
        overlay = f"overlay=overlay:{disks.work}/map?over=file:{disks.image('overlay')}?ro"
        disks.loop = run("losetup", "--find", "--show", "--sector-size", "2048", str(disks.image("loop"))).strip()
        disks.host("serve", "--background", "--block-size", "512", str(disks.image("512")), overlay)
        disks.host("add", "--block-size", "1024", str(disks.image("1024")))
        disks.host("add", "--block-size", "2048", str(disks.image("2048")), f"loop={disks.loop}")
        disks.host("add", str(disks.image("4096")), str(disks.work / "whole.img"))
        inside.wait_for("all devices to be live", lambda: disks.find(7), interval_s=0.5)
        yield disks
    finally:
        inside.replug("host", "down")
        inside.replug("gadget", "down", "--force")
        if disks.loop:
            run("losetup", "-d", disks.loop)
    inside._see_nothing_left()


class Disk:
    """A device past the page cache, and a model of what it must hold."""

    def __init__(self, device: str, model: bytes) -> None:
        self.device, self.model = device, bytearray(model)
        self.fd = os.open(device, os.O_RDWR | os.O_DIRECT)

    def __enter__(self) -> "Disk":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def read(self, offset: int, size_bytes: int) -> bytes:
        with mmap.mmap(-1, size_bytes) as buffer:
            assert os.preadv(self.fd, [buffer], offset) == size_bytes
            return buffer[:]

    def write(self, offset: int, data: bytes) -> None:
        with mmap.mmap(-1, len(data)) as buffer:
            buffer[:] = data
            assert os.pwritev(self.fd, [buffer], offset) == len(data)
        self.model[offset : offset + len(data)] = data

    def discard(self, offset: int, size_bytes: int) -> None:
        fcntl.ioctl(self.fd, BLKDISCARD, struct.pack("QQ", offset, size_bytes))

    def zero(self, offset: int, size_bytes: int) -> None:
        fcntl.ioctl(self.fd, BLKZEROOUT, struct.pack("QQ", offset, size_bytes))
        self.model[offset : offset + size_bytes] = bytes(size_bytes)

    def agrees(self) -> None:
        """Whole, so with everything that no operation was to touch."""
        found = b"".join(self.read(at, 65536) for at in range(0, len(self.model), 65536))
        assert found == self.model, first_difference(found, self.model)


def first_difference(found: bytes, expected: bytes | bytearray) -> str:
    at = next(n for n in range(0, len(found), 512) if found[n : n + 512] != expected[n : n + 512])
    return f"other bytes at {at:#x}: {found[at : at + 16].hex()}, not {expected[at : at + 16].hex()}"


def queue(device: str, name: str) -> int:
    return int(Path("/sys/block", Path(device).name, "queue", name).read_text())


def openable(device: str) -> bool:
    """The node comes a moment before its disk."""
    try:
        os.close(os.open(device, os.O_RDONLY))
    except OSError:
        return False
    return True


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout


# -- block sizes -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("block", BLOCK_SIZES)
def test_a_disk_of_any_logical_block_size_takes_io_of_whole_blocks_wherever_it_begins(disks: Disks, block: int) -> None:
    """Issue 4, item 1: 512 to the page size. Most of what is written begins or ends inside of a page."""
    name, rng = str(block), dice(f"blocks of {block}")
    device = disks.devices[name]
    assert queue(device, "logical_block_size") == block
    unaligned = 0
    with Disk(device, disks.content[name]) as disk:
        for _ in range(24):
            blocks = rng.randint(1, 9)
            at = rng.randrange(SIZE // block - blocks + 1) * block
            disk.write(at, rng.randbytes(blocks * block))
            unaligned += bool(at % PAGE or blocks * block % PAGE)
            at = max(0, at - block)  # with the block before it
            size = min((blocks + 2) * block, SIZE - at)
            assert disk.read(at, size) == disk.model[at : at + size]
        os.fsync(disk.fd)
        assert unaligned or block == PAGE
        assert disks.images[name].read_bytes() == disk.model, "the host's file, whole"


# -- discard and write-zeroes --------------------------------------------------------------------------------------
def test_blkdiscard_and_write_zeroes_of_a_file_touch_their_range_and_no_neighbour(disks: Disks) -> None:
    """Issue 4, item 1, what it must show: byte by byte. A discarded range of a file is a hole: it reads as zeroes."""
    with Disk(disks.devices["512"], disks.images["512"].read_bytes()) as disk:
        ranges(disk, dice("file"), 512)
        whole(disk)
        assert disks.images["512"].read_bytes() == disk.model
        # `blkdiscard -z` zeroes with BLKDEV_ZERO_NOUNMAP (block/ioctl.c): that third keeps its room
        room_bytes = disks.images["512"].stat().st_blocks * 512
        assert room_bytes <= SIZE - SIZE // 3 + PAGE, "what was discarded takes no room"


def test_a_block_device_of_the_host_is_served_with_its_own_sizes_and_discards(disks: Disks) -> None:
    """Issue 4, item 2: the block device source, here a loop device with blocks of 2048 bytes, and its file under it."""
    device = disks.devices["loop"]
    assert [queue(device, f"{kind}_block_size") for kind in ("logical", "physical")] == [2048, 2048]
    with Disk(device, disks.content["loop"]) as disk:
        disk.agrees()
        ranges(disk, dice("loop"), 2048)
        whole(disk)
        assert disks.images["loop"].read_bytes() == disk.model, "flushed to the file under the loop device"


def test_an_overlay_takes_writes_discards_and_zeroes_and_what_is_under_it_stays(disks: Disks) -> None:
    """Issue 4, item 2. Only whole clusters that lie in the overlay are discarded: others read as before."""
    device, rng = disks.devices["overlay"], dice("overlay")
    assert queue(device, "physical_block_size") == PAGE
    here: set[int] = set()

    with Disk(device, disks.content["overlay"]) as disk:
        for turn in range(24):
            blocks = rng.randint(1, 40)
            at, size = rng.randrange(SIZE // 512 - blocks) * 512, blocks * 512
            if turn % 3 == 0:
                disk.write(at, rng.randbytes(size))
            elif turn % 3 == 1:
                disk.zero(at, size)
            else:
                disk.discard(at, size)
                for cluster in range(-(-at // PAGE), (at + size) // PAGE):
                    if cluster in here:
                        disk.model[cluster * PAGE : (cluster + 1) * PAGE] = bytes(PAGE)
            if turn % 3 < 2:
                here |= set(range(at // PAGE, -(-(at + size) // PAGE)))
        os.fsync(disk.fd)
        disk.agrees()
    assert disks.images["overlay"].read_bytes() == disks.content["overlay"]


def ranges(disk: Disk, rng: random.Random, block: int) -> None:
    """Random ranges written, discarded and zeroed; the whole disk is compared after each few."""
    for turn in range(30):
        blocks = rng.randint(1, 65536 // block)
        at, size = rng.randrange(SIZE // block - blocks) * block, blocks * block
        if turn % 3 == 0:
            disk.discard(at, size)
            disk.model[at : at + size] = bytes(size)
        elif turn % 3 == 1:
            disk.zero(at, size)
        else:
            disk.write(at, rng.randbytes(size))
        if turn % 10 == 9:
            disk.agrees()


def whole(disk: Disk) -> None:
    """As an operator says it, a part each: all bytes before and behind stay."""
    third = SIZE // 3 // PAGE * PAGE
    for words, at in (([], third // 2), (["-z"], SIZE - third - PAGE)):
        disk.write(at - PAGE, os.urandom(PAGE))
        disk.write(at + third, os.urandom(PAGE))
        run("blkdiscard", *words, "-o", str(at), "-l", str(third), disk.device)
        disk.model[at : at + third] = bytes(third)
    disk.agrees()
    os.fsync(disk.fd)


# -- file systems --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "check"), [("ext4", ["e2fsck", "-fn"]), ("xfs", ["xfs_repair", "-n", "-f"])], ids=["ext4", "xfs"]
)
def test_fio_verifies_each_block_on_a_file_system_over_a_pulled_cable_and_it_is_clean(
    disks: Disks, tmp_path: Path, kind: str, check: list[str]
) -> None:
    """Issue 4, what it must show: integrity runs, unplugged in the middle, fsck clean."""
    device, place = disks.devices["whole"], tmp_path / "mnt"
    place.mkdir()
    run(f"mkfs.{kind}", "-q", "-f" if kind == "xfs" else "-F", device)
    run("mount", "-t", kind, "-o", "discard", device, str(place))
    (tmp_path / "job").write_text(FIO.format(place=place))
    try:
        with (tmp_path / "words").open("w") as words:
            fio = subprocess.Popen(["fio", str(tmp_path / "job")], stdout=words, stderr=subprocess.STDOUT, cwd=tmp_path)
        try:
            cable = faults.deauthorize(inside._usb_device)
            for _ in range(2):
                at_work(device, fio)
                assert dd.in_flight(device) or fio.poll() is None
                cable.strike()
            at_work(device, fio)
            fio.send_signal(2)
            assert fio.wait(120) in (0, FIO_INTERRUPTED), (tmp_path / "words").read_text()[-2000:]
        finally:
            fio.kill()
    finally:
        run("umount", str(place))
    run(*check, str(disks.work / "whole.img"))


def at_work(device: str, fio: "subprocess.Popen[bytes]") -> None:
    """Wait until it has read back (and so verified), written and flushed more than now."""

    def counts() -> list[int]:
        fields = Path("/sys/block", Path(device).name, "stat").read_text().split()
        return [int(fields[kind]) for kind in (0, 4, 15)]  # Documentation/block/stat.rst

    before = counts()

    def more() -> bool:
        assert fio.poll() is None, f"fio has ended with {fio.returncode}"
        return all(now > old + 4 for now, old in zip(counts(), before, strict=True))

    await_event("fio to be at work", more, 90)


# -- ways in -------------------------------------------------------------------------------------------------------
def test_an_image_that_the_host_has_mounted_is_not_served_until_it_is_unmounted(tmp_path: Path) -> None:
    """Issue 4, item 5: never served while mounted on the host. Exit 2, with where it is mounted and what ends that."""
    image, place = tmp_path / "mounted.img", tmp_path / "mnt"
    place.mkdir()
    with image.open("wb") as sparse:
        sparse.truncate(8 * MIB)
    run("mkfs.ext4", "-q", "-F", str(image))
    run("mount", "-o", "loop", str(image), str(place))
    try:
        refused = inside.replug("host", "serve", "--background", "--instance", "other", str(image))
    finally:
        run("umount", str(place))
    assert refused.returncode == 2
    assert refused.stderr == f"replug: {image}: mounted on {place}: unmount it with 'umount {place}'\n"
    loops = [p for p in Path("/sys/block").glob("loop*/loop/backing_file") if p.read_text().strip() == str(image)]
    assert not loops, "umount takes the loop device with it"
    served = inside.replug("host", "serve", "--background", "--instance", "other", str(image))
    assert served.returncode == 0, "so the advice works"
    assert inside.replug("host", "down", "--instance", "other").returncode == 0
