"""Partition tables, read as the kernel's own scan would: MBR with its chain of logical partitions, and GPT. Pure.

The kernel may not scan our disks (gadget.ublk.device.without_sys_admin says why), so gadget.ublk.partitions reads the
table itself once I/O flows. Anything that makes no sense is no partition, never an error: the bytes are a stranger's.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

Read = Callable[[int, int], bytes]  # offset and size in bytes, whole blocks
_ENTRY = struct.Struct("<B3xB3xII")  # of an MBR: status, type, first block, blocks
_GPT = struct.Struct("<8sIIII QQQQ 16s QIII")  # signature ... entries' block, their number, size and CRC
_GPT_ENTRY = struct.Struct("<16s16sQQ")  # type, id, first and last block
_EXTENDED: Final = (0x05, 0x0F, 0x85)
_PROTECTIVE: Final = 0xEE
_MAX_LOGICAL: Final = 60  # a chain may lead in a circle
_MAX_GPT_BYTES: Final = 128 * 512  # 128 entries of 128 bytes are usual; more than this is nonsense


@dataclass(frozen=True, slots=True)
class Partition:
    """Number as in /dev/ublkb0p1, and where it lies, in bytes."""

    number: int
    start: int
    size: int


def partitions(read: Read, size_bytes: int, block: int) -> tuple[Partition, ...]:
    """Those of the disk that lie inside it. `block`: its logical block size, which is what tables count in."""
    sector = read(0, block)
    if sector[510:512] != b"\x55\xaa":
        return ()
    entries, found = list(_entries(sector)), list[Partition]()
    if any(kind == _PROTECTIVE for kind, _, _ in entries):
        found = _gpt(read, size_bytes, block, 1) or _gpt(read, size_bytes, block, size_bytes // block - 1)
    else:
        for number, (kind, first, count) in enumerate(entries, 1):
            # Of an extended one only the head, as the kernel does: the logical ones in it may not overlap it.
            size = min(count * block, max(block, 1024)) if kind in _EXTENDED else count * block
            found += [Partition(number, first * block, size)] if kind else []
        for kind, first, _ in entries:
            if kind in _EXTENDED:
                found += islice(_logical(read, first, size_bytes, block), _MAX_LOGICAL)
                break
    return tuple(p for p in found if p.start > 0 and p.size > 0 and p.start + p.size <= size_bytes)


def _entries(sector: bytes) -> Iterator[tuple[int, int, int]]:
    """(type, first block, blocks) of each of the four; type 0: none."""
    for status, kind, first, count in _ENTRY.iter_unpack(sector[446:510]):
        sound = status in (0, 0x80) and count
        yield (kind if sound else 0, first, count)


def _logical(read: Read, base: int, size_bytes: int, block: int) -> Iterator[Partition]:
    """From 5 on. Each link of the chain holds one partition, counted from itself, and the next link, from the first."""
    link, number, seen = base, 5, set[int]()
    while link not in seen and 0 < link < size_bytes // block:
        seen.add(link)
        sector = read(link * block, block)
        if sector[510:512] != b"\x55\xaa":
            return
        following = 0
        for kind, first, count in _entries(sector):
            if kind in _EXTENDED:
                following = following or base + first
            elif kind:
                yield Partition(number, (link + first) * block, count * block)
                number += 1
        link = following


def _gpt(read: Read, size_bytes: int, block: int, at: int) -> list[Partition]:
    """From the header in block `at`; none if its checksums are wrong."""
    sector = read(at * block, block)
    signature, _, header_bytes, crc, _, own, _, _, _, _, start, number, each, entries_crc = _GPT.unpack_from(sector)
    if signature != b"EFI PART" or own != at or not _GPT.size <= header_bytes <= block or each < 128 or each % 8:
        return []
    header = sector[:16] + bytes(4) + sector[20:header_bytes]
    table_bytes = number * each
    whole = -(-table_bytes // block) * block
    if zlib.crc32(header) != crc or not 0 < table_bytes <= _MAX_GPT_BYTES or start * block + whole > size_bytes:
        return []
    table = read(start * block, whole)[:table_bytes]
    if zlib.crc32(table) != entries_crc:
        return []
    found = []
    for n in range(number):
        kind, _, first, last = _GPT_ENTRY.unpack_from(table, n * each)
        if any(kind) and last >= first:
            found.append(Partition(n + 1, first * block, (last - first + 1) * block))
    return found
