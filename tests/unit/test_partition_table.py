"""Partition tables as bytes: MBR, logical partitions, GPT and its backup, and whatever lies on a stranger's disk."""

import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gadget.ublk.partitions import known
from gadget.ublk.table import Partition, partitions

BLOCKS = 4096


class Disk:
    """A disk in memory that counts in blocks of `block` bytes."""

    def __init__(self, block: int = 512) -> None:
        self.block, self.data = block, bytearray(BLOCKS * block)

    def mbr(self, *entries: tuple[int, int, int], at: int = 0) -> "Disk":
        """(type, first block, blocks), in this order."""
        for n, (kind, first, count) in enumerate(entries):
            struct.pack_into("<B3xB3xII", self.data, at * self.block + 446 + 16 * n, 0, kind, first, count)
        self.data[at * self.block + 510 : at * self.block + 512] = b"\x55\xaa"
        return self

    def gpt(self, *entries: tuple[int, int], at: int = 1, table: int = 2) -> "Disk":
        """(first, last block): a header in block `at` and its table from block `table`."""
        rows = b"".join(struct.pack("<16s16sQQ80x", b"T" * 16, b"I" * 16, *entry) for entry in entries)
        rows = rows.ljust(128 * 128, b"\0")
        fields = (b"EFI PART", 0x10000, 92, 0, 0, at, 0, 0, 0, b"D" * 16, table, 128, 128, zlib.crc32(rows))
        header = struct.pack("<8sIIII QQQQ 16s QIII", *fields)
        header = header[:16] + struct.pack("<I", zlib.crc32(header)) + header[20:]
        self.data[at * self.block : at * self.block + len(header)] = header
        self.data[table * self.block : table * self.block + len(rows)] = rows
        return self

    def read(self, offset: int, size: int) -> bytes:
        assert offset % self.block == size % self.block == 0 and offset + size <= len(self.data), (
            "a read the disk refuses"
        )
        return bytes(self.data[offset : offset + size])

    def found(self) -> list[tuple[int, int, int]]:
        """(number, first block, blocks)."""
        there = partitions(self.read, len(self.data), self.block)
        return [(p.number, p.start // self.block, p.size // self.block) for p in there]


@pytest.mark.parametrize("block", [512, 4096])
def test_primary_partitions_keep_the_number_of_their_entry(block: int) -> None:
    assert Disk(block).mbr((0x83, 8, 100), (0, 0, 0), (0x83, 200, 50)).found() == [(1, 8, 100), (3, 200, 50)]


def test_logical_partitions_count_from_five_each_from_its_link_in_the_chain() -> None:
    disk = Disk().mbr((0x83, 8, 100), (0x05, 1000, 1000))
    disk.mbr((0x83, 10, 90), (0x05, 500, 100), at=1000).mbr((0x83, 10, 40), at=1500)
    assert disk.found() == [(1, 8, 100), (2, 1000, 2), (5, 1010, 90), (6, 1510, 40)]


def test_a_chain_that_leads_in_a_circle_ends() -> None:
    disk = Disk().mbr((0x05, 1000, 1000))
    disk.mbr((0x83, 10, 90), (0x05, 500, 100), at=1000).mbr((0x83, 10, 40), (0x05, 500, 9), at=1500)
    assert disk.found() == [(1, 1000, 2), (5, 1010, 90), (6, 1510, 40)]


@pytest.mark.parametrize("block", [512, 4096])
def test_gpt_counts_behind_its_protective_mbr(block: int) -> None:
    disk = Disk(block).mbr((0xEE, 1, BLOCKS - 1)).gpt((64, 163), (200, 299))
    assert disk.found() == [(1, 64, 100), (2, 200, 100)]


def test_a_spoilt_gpt_is_read_from_its_backup_and_two_spoilt_ones_are_none() -> None:
    disk = Disk().mbr((0xEE, 1, BLOCKS - 1)).gpt((64, 163)).gpt((64, 163), at=BLOCKS - 1, table=BLOCKS - 33)
    disk.data[1 * 512 + 40] ^= 1
    assert disk.found() == [(1, 64, 100)]
    disk.data[(BLOCKS - 33) * 512] ^= 1
    assert disk.found() == []


def test_what_lies_outside_the_disk_is_no_partition() -> None:
    assert Disk().mbr((0x83, 8, BLOCKS), (0x83, BLOCKS + 1, 5), (0x83, 100, BLOCKS - 100)).found() == [
        (3, 100, BLOCKS - 100)
    ]


def test_a_disk_without_a_signature_has_none() -> None:
    disk = Disk().mbr((0x83, 8, 100))
    disk.data[510] = 0
    assert disk.found() == []


@given(
    entries=st.lists(st.tuples(st.sampled_from([0, 5, 15, 0x83, 0xEE]), st.integers(0, 2**32 - 1), st.integers(0, 99))),
    links=st.lists(st.tuples(st.sampled_from([0, 5, 0x83]), st.integers(0, BLOCKS), st.integers(0, 99)), max_size=4),
    noise=st.binary(max_size=92),
)
def test_any_bytes_are_partitions_inside_the_disk_and_never_an_error(
    entries: list[tuple[int, int, int]], links: list[tuple[int, int, int]], noise: bytes
) -> None:
    disk = Disk().mbr(*[(kind, first % BLOCKS, count) for kind, first, count in entries[:4]])
    for at in {first % BLOCKS for _, first, _ in entries[:4]} - {0}:
        disk.mbr(*links, at=at)
    disk.data[512 : 512 + len(noise)] = noise
    for number, first, count in disk.found():
        assert number > 0 and first > 0 and count > 0 and first + count <= BLOCKS


def test_what_the_kernel_knows_is_read_from_sysfs(tmp_path: Path) -> None:
    for number, start, size in ((1, 2048, 4096), (5, 8192, 100)):
        place = tmp_path / f"ublkb0p{number}"
        place.mkdir()
        for name, value in (("partition", number), ("start", start), ("size", size)):
            (place / name).write_text(f"{value}\n")
    assert known(tmp_path) == {1: Partition(1, 2048 * 512, 4096 * 512), 5: Partition(5, 8192 * 512, 100 * 512)}
