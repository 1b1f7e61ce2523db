"""A disk is served with the block size that its content was made for: one with larger blocks could not be used."""

import struct
import subprocess
from pathlib import Path

import pytest

from tests.unit.test_partition_table import BLOCKS, Disk
from tools.cli.content import file_system, made_for
from tools.cli.sources import look_at

MIB = 1 << 20


def made(path: Path, size_bytes: int = 8 * MIB) -> bytearray:
    with path.open("wb") as file:
        file.truncate(size_bytes)
    return bytearray(size_bytes)


def fat(sector: int) -> bytes:
    """What mkfs.fat begins with: jump, name, BPB_BytsPerSec, and the kind as its text."""
    head = bytearray(4096)
    head[:13] = b"\xeb\x3c\x90mkfs.fat" + struct.pack("<H", sector)
    head[54:62], head[510:512] = b"FAT16   ", b"\x55\xaa"
    return bytes(head)


@pytest.mark.parametrize(
    ("options", "block_size"),
    [((), 1024), (("-b", "1024"), 1024), (("-b", "2048"), 2048), (("-b", "4096"), 4096), (("-t", "ext2"), 1024)],
)
def test_ext_of_a_size_is_served_in_its_own_blocks(tmp_path: Path, options: tuple[str, ...], block_size: int) -> None:
    """Seen: the tutorial's 64 MiB, made as it says, could not be mounted on a device of 4096."""
    image = tmp_path / "disk.img"
    made(image, 64 * MIB)
    subprocess.run(["/sbin/mkfs.ext4", "-q", "-F", *options, image], check=True, timeout=60)
    assert [source.block_size for source in look_at([str(image)], None, False)] == [block_size]
    assert look_at([str(image)], 512, False)[0].block_size == 512, "what is said counts"


@pytest.mark.parametrize(
    ("head", "block_size"),
    [
        (fat(512), 512),
        (fat(4096), 4096),
        (fat(77), None),
        (fat(0), None),
        (b"XFSB".ljust(102, b"\0") + struct.pack(">H", 512), 512),
        (b"XFSB".ljust(102, b"\0") + struct.pack(">H", 4096), 4096),
        (b"\xebv\x90EXFAT   ".ljust(108, b"\0") + b"\x09", 512),
        (b"\xebv\x90EXFAT   ".ljust(108, b"\0") + b"\xff", None),
        (bytes(1048) + struct.pack("<I", 6) + bytes(28) + b"\x53\xef", 4096),  # 64K blocks, of another machine
        (bytes(1048) + struct.pack("<I", 77) + bytes(28) + b"\x53\xef", None),
        (bytes(32769) + b"CD001", 2048),
        (bytes(4096), None),
        (b"short", None),
    ],
)
def test_what_a_file_system_says_of_itself(head: bytes, block_size: int | None) -> None:
    disk = head if head == b"short" else head.ljust(40960, b"\0")
    assert file_system(lambda offset, size: disk[offset : offset + size], 0) == block_size


def block_size_of(disk: bytes | bytearray) -> int | None:
    return made_for(lambda offset, size: bytes(disk[offset : offset + size]), len(disk))


@pytest.mark.parametrize("block", [512, 4096])
def test_a_gpt_lies_where_its_blocks_are(block: int) -> None:
    disk = Disk(block).mbr((0xEE, 1, BLOCKS - 1)).gpt((64, 200))
    assert block_size_of(disk.data) == block


def test_an_mbr_whose_partitions_would_not_fit_in_large_blocks_counts_in_small_ones() -> None:
    assert block_size_of(Disk().mbr((0x0C, 64, 64), (0x83, 128, BLOCKS - 128)).data) == 512


def test_an_mbr_that_fits_both_ways_counts_as_what_lies_there_says() -> None:
    disk = Disk().mbr((0x83, 16, 64)).data
    assert block_size_of(disk) == 4096, "as a gadget makes one on a device of 4096"
    for block in (512, 4096):
        with_one = bytearray(disk)
        with_one[16 * block : 16 * block + 4096] = fat(block)
        assert block_size_of(with_one) == block


@pytest.mark.parametrize(("size_bytes", "block_size"), [(MIB, 4096), (MIB + 512, 512)])
def test_a_disk_that_says_nothing_has_the_blocks_that_its_size_allows(
    tmp_path: Path, size_bytes: int, block_size: int
) -> None:
    made(tmp_path / "disk.img", size_bytes)
    assert look_at([str(tmp_path / "disk.img")], None, False)[0].block_size == block_size


def test_a_disk_that_cannot_be_read_is_served_all_the_same(tmp_path: Path) -> None:
    image, switch = tmp_path / "disk.img", tmp_path / "switch"
    made(image)
    switch.touch()
    assert look_at([f"fault:{switch}?error=EIO&over={image}"], None, False)[0].block_size == 4096
