"""Partitions of a ublk device, made known to the kernel by the BLKPG ioctl, as partx does (linux/blkpg.h).

The kernel's scan at START_DEV is suppressed, and BLKRRPART refused for such a disk. So a disposable process reads the
table when I/O flows, and adds what the kernel does not know. Partitions then belong to the disk: recovery keeps them, a
mounted one too. One that is there and lies elsewhere is changed only if nobody has it open. Job of gadget.ublk.role.
"""

import ctypes
import fcntl
import os
from errno import EBUSY, ENXIO
from pathlib import Path
from typing import Final

from gadget.ublk.table import Partition, partitions

_BLKPG: Final = 0x1269
_ADD, _DELETE = 1, 2
_SECTOR: Final = 512  # what sysfs counts in


class _Partition(ctypes.Structure):
    """struct blkpg_partition."""

    _fields_ = (
        ("start", ctypes.c_longlong),
        ("length", ctypes.c_longlong),
        ("pno", ctypes.c_int),
        ("devname", ctypes.c_char * 64),
        ("volname", ctypes.c_char * 64),
    )


class _Argument(ctypes.Structure):
    """struct blkpg_ioctl_arg."""

    _fields_ = (
        ("op", ctypes.c_int),
        ("flags", ctypes.c_int),
        ("datalen", ctypes.c_int),
        ("data", ctypes.c_void_p),
    )


def make_known(ublk_id: int, sys_block: Path = Path("/sys/block"), dev: Path = Path("/dev")) -> list[str]:
    """Read the table of /dev/ublkbN and add what is new; what could not be done, a line each.

    Reads of the disk wait like any other. OSError: ENOENT there is no such disk, EIO it was ended meanwhile.
    """
    name = f"ublkb{ublk_id}"
    fd = os.open(dev / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size_bytes = os.lseek(fd, 0, os.SEEK_END)
        block = int((sys_block / name / "queue" / "logical_block_size").read_text())
        there, faults = known(sys_block / name), []
        for partition in partitions(lambda offset, size: os.pread(fd, size, offset), size_bytes, block):
            before = there.get(partition.number)
            if before == partition:
                continue
            try:
                if before is not None:
                    _blkpg(fd, _DELETE, before)
                _blkpg(fd, _ADD, partition)
            except OSError as error:
                if error.errno not in (EBUSY, ENXIO):  # in use; another one lies there
                    raise
                faults.append(f"{name}p{partition.number}: {error.strerror}: left as it is")
        return faults
    finally:
        os.close(fd)


def known(disk: Path) -> dict[int, Partition]:
    """Partitions that the kernel has of this disk (a directory of /sys/block)."""
    found = {}
    for file in disk.glob("*/partition"):
        number = int(file.read_text())
        start, size = (int((file.parent / field).read_text()) * _SECTOR for field in ("start", "size"))
        found[number] = Partition(number, start, size)
    return found


def _blkpg(fd: int, op: int, partition: Partition) -> None:
    data = _Partition(partition.start, partition.size, partition.number)
    argument = _Argument(op, 0, ctypes.sizeof(data), ctypes.addressof(data))
    fcntl.ioctl(fd, _BLKPG, bytes(argument))
