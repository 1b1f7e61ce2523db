"""File systems on the real kernel (issue 4, item 5 and what it must show): partitions, discard, cables pulled.

`replug host eject` is here too, as the last act of a disk in use.
"""

import os
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bus.runtime import Runtime, Side, living
from tests.e2e.v0_host import await_event
from tools.cli.look import look
from tools.demo import faults, image, inside

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
MIB = 1 << 20
DISK_BYTES = 40 * MIB
WHOLE_BYTES = 304 * MIB  # sparse; the least that mkfs.xfs takes is 300 MB
PARTS = {1: (1 * MIB, 24 * MIB), 2: (26 * MIB, 8 * MIB)}  # start and size

# ext4 not lazily: its kernel thread would allocate inode tables in the host's file while a test looks at its size.
MKFS = {"ext4": ("-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"), "xfs": ("-f",)}


def with_partitions(path: Path, size_bytes: int, parts: dict[int, tuple[int, int]]) -> None:
    """A sparse image with an MBR of `parts` (start and size), in blocks of 4096 bytes: the device has such."""
    entries = b"".join(struct.pack("<B3xB3xII", 0, 0x83, start // 4096, size // 4096) for start, size in parts.values())
    with path.open("wb") as file:
        file.truncate(size_bytes)
        file.seek(446)
        file.write(entries)
        file.seek(510)
        file.write(b"\x55\xaa")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[inside.Bench]:
    work = tmp_path_factory.mktemp("fs")
    with_partitions(work / "disk.img", DISK_BYTES, PARTS)
    with (work / "whole.img").open("wb") as file:
        file.truncate(WHOLE_BYTES)
    with inside.both_sides(work / "disk.img", work / "whole.img") as both:
        yield both


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str, str], Path]]:
    """Make a file system and mount it with discard; it is unmounted at the end in any case."""
    place = tmp_path / "mnt"
    place.mkdir()

    def mount(kind: str, device: str) -> Path:
        run(f"mkfs.{kind}", "-q", *MKFS[kind], device)
        run("mount", "-t", kind, "-o", "discard", device, str(place))
        return place

    yield mount
    if place.is_mount():
        run("umount", "-l", str(place))


def check_ext4(path: Path) -> None:
    run("e2fsck", "-fn", str(path))


def check_xfs(path: Path) -> None:
    """-n finds and changes nothing; its status is 1 if it found something."""
    run("xfs_repair", "-n", "-f", str(path))


CHECKS = {"ext4": check_ext4, "xfs": check_xfs}


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout


def replaced(side: Side, role: str) -> None:
    """kill -9, and its successor's record."""
    before = living(Runtime(side), role)
    assert before is not None
    os.kill(before.pid, signal.SIGKILL)
    await_event(f"{role}'s successor", lambda: (now := living(Runtime(side), role)) is not None and now != before)


def copied(content: Path, into: Path, meanwhile: Callable[[], None]) -> None:
    """Copy a tree to stable storage while something happens to the link."""
    copy = subprocess.Popen(["sh", "-c", f"cp -r {content} {into}/ && sync -f {into}"])
    await_event("the copy to be in the middle", lambda: len(list(into.rglob("*"))) > 3, 60)
    meanwhile()
    assert copy.wait(180) == 0


def equal(one: Path, other: Path) -> None:
    assert image.tree_digest(one) == image.tree_digest(other)


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_partitions_are_there_and_a_mounted_one_is_kept_through_kills_of_queue_and_usb(
    bench: inside.Bench, mounted: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """Issue 4, item 5: partitions of an export, kept through recovery."""
    name = Path(bench.image_device).name
    await_event("both partitions", lambda: all(Path(f"/dev/{name}p{n}").exists() for n in PARTS))
    for number, (start, size) in PARTS.items():
        part = Path("/sys/block", name, f"{name}p{number}")
        assert [int((part / field).read_text()) * 512 for field in ("start", "size")] == [start, size]
    place = mounted("ext4", f"{bench.image_device}p1")
    content = tmp_path / "tree"
    content.mkdir()
    image.make_content(content, 3 * MIB)
    identity = os.stat(f"{bench.image_device}p1").st_rdev

    def kills() -> None:
        for role in (bench.image_role, "usb", bench.image_role):
            replaced(Side.GADGET, role)

    copied(content, place, kills)
    assert os.stat(f"{bench.image_device}p1").st_rdev == identity and place.is_mount()
    run("umount", str(place))
    run("mount", f"{bench.image_device}p1", str(place))
    equal(content, place / "tree")
    run("umount", str(place))
    assert run("e2fsck", "-fn", f"{bench.image}?offset={PARTS[1][0]}")


@pytest.mark.parametrize("kind", CHECKS)
def test_a_file_system_unplugged_in_the_middle_of_a_copy_is_clean_and_trims_what_was_deleted(
    bench: inside.Bench, mounted: Callable[[str, str], Path], tmp_path: Path, kind: str
) -> None:
    """Issue 4: mkfs, mount with discard, unplug in the middle, fstrim, fsck clean."""
    place = mounted(kind, bench.scratch_device)
    content = tmp_path / "tree"
    content.mkdir()
    image.make_content(content, 5 * MIB)
    cable = faults.deauthorize(inside._usb_device)
    copied(content, place, cable.strike)
    full = allocated(bench.scratch)
    run("sh", "-c", f"rm -r {place}/tree && sync -f {place}")
    run("fstrim", str(place))
    await_event("the host's file to shrink", lambda: allocated(bench.scratch) < full - 4 * MIB)
    copied(content, place, cable.strike)
    run("umount", str(place))
    CHECKS[kind](bench.scratch)
    run("mount", bench.scratch_device, str(place))
    equal(content, place / "tree")
    run("umount", str(place))


def test_eject_flushes_everything_and_nothing_is_acknowledged_afterwards(
    bench: inside.Bench, mounted: Callable[[str, str], Path]
) -> None:
    """Issue 4, item 5: eject says when it is safe, and status shows the bytes not yet flushed."""
    device = os.open(bench.scratch_device, os.O_RDWR | os.O_DIRECT)
    writer = subprocess.Popen(
        ["dd", "if=/dev/zero", f"of={bench.scratch_device}", "bs=64k", "oflag=direct", "conv=notrunc"],
        stderr=subprocess.DEVNULL,
    )
    try:
        await_event("bytes that are not flushed", lambda: unflushed(Side.GADGET) > MIB and unflushed(Side.HOST) > MIB)
        ejected = inside.replug("host", "eject")
        assert ejected.returncode == 0, ejected.stderr
        assert "it is safe to unplug the gadget or to power this machine off" in ejected.stderr
        assert unflushed(Side.GADGET) == unflushed(Side.HOST) == 0
        states = [(e["state"], e["reason"]) for e in look(Runtime(Side.GADGET))["exports"]]
        assert states == [("parked", "ejected at the host, everything is flushed there")] * 2
        counted = completed()
        time.sleep(1)  # that nothing happens can only be waited for
        assert completed() == counted and writer.poll() is None
        again = inside.replug("host", "eject")
        assert again.returncode == 0, "said again it is still safe"
    finally:
        writer.kill()
        os.close(device)


def unflushed(side: Side) -> int:
    return sum(int(export["unflushed_bytes"]) for export in look(Runtime(side))["exports"])


def completed() -> int:
    exports = look(Runtime(Side.GADGET))["exports"]
    return sum(export["counters"]["write_count"] for export in exports)
