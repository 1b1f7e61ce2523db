"""For which block size a disk's content was made: a file system or partition table that counts in less than a device's
logical blocks cannot be used there, and images for phones and boards mostly count in 512 bytes.

Where nothing is recognised, or it does with 4096, nobody is asked for less. Used by tools.cli.sources.
"""

import struct
from collections.abc import Callable

from gadget.ublk.table import partitions

Read = Callable[[int, int], bytes]  # offset and size in bytes; short at the end
LARGEST = 4096
_HEAD = 4096


def made_for(read: Read, size_bytes: int) -> int | None:
    """Bytes of the largest logical block that the content can be used with, up to LARGEST; None: it does not say."""
    whole = file_system(read, 0)
    if whole is not None:
        return whole
    small, large = (partitions(read, size_bytes, block) for block in (512, LARGEST))
    if not small and not large:
        return None
    if len(small) != len(large):  # those that would not lie inside are none
        return 512 if len(small) > len(large) else LARGEST
    # An MBR says where, but not in which unit: what lies there does.
    found = [sum(file_system(read, part.start) is not None for part in parts) for parts in (small, large)]
    return 512 if found[0] > found[1] else LARGEST


def file_system(read: Read, start: int) -> int | None:
    """The same of the file system that begins there; None if it is none of those known here."""
    head = read(start, _HEAD)
    if len(head) < _HEAD:
        return None
    size = 0
    if head[1080:1082] == b"\x53\xef":  # ext2, 3 and 4: s_magic, s_log_block_size
        [log] = struct.unpack_from("<I", head, 1024 + 24)
        size = 1024 << log if log < 7 else 0
    elif head[:4] == b"XFSB":  # sb_sectsize
        [size] = struct.unpack_from(">H", head, 102)
    elif head[3:11] == b"EXFAT   ":  # BytesPerSectorShift
        size = 1 << head[108] if head[108] < 13 else 0
    elif head[510:512] == b"\x55\xaa" and (head[54:57] == b"FAT" or head[82:87] == b"FAT32"):  # BPB_BytsPerSec
        [size] = struct.unpack_from("<H", head, 11)
    elif read(start + 32768, LARGEST)[1:6] == b"CD001":
        size = 2048
    sound = size >= 512 and size & (size - 1) == 0
    return min(size, LARGEST) if sound else None
