"""What makes a file or a block device the same disk: also after a reboot, another mount point or another kernel name.

Only looks, nothing is opened. A new file in an old one's place is another disk, though file systems like to give it
the same inode number: the time of birth tells them apart, where the file system keeps one. Called by host.source.file
and host.source.overlay.
"""

import ctypes
import os
import struct
from pathlib import Path

_AT_EMPTY_PATH, _STATX_BTIME = 0x1000, 0x800  # linux/fcntl.h, linux/stat.h
_STATX_BYTES, _BTIME_AT = 256, 80  # struct statx: its size, and where stx_btime (s64, u32) lies
_SYSFS = Path("/sys/dev/block")
_NAMES = ("dm/uuid", "md/uuid", "wwid", "device/wwid", "device/serial")  # the first that is there is the disk's own

_libc = ctypes.CDLL(None, use_errno=True)


def of_file(fd: int) -> str:
    """File system, inode and birth. A file system without an id of its own is known by its device number."""
    status = os.fstat(fd)
    system = os.fstatvfs(fd).f_fsid or status.st_dev
    return f"file {system:x}:{status.st_ino}:{_birth(fd)}"


def of_device(rdev: int, root: Path = _SYSFS) -> str:
    """By the name that the disk carries itself and the partition's number; else by device number."""
    number = f"{os.major(rdev)}:{os.minor(rdev)}"
    place = (root / number).resolve()
    partition = _text(place / "partition")
    disk = place.parent if partition else place
    for name in _NAMES:
        if own := _text(disk / name):
            return f"device {own}" + (f" partition {partition}" if partition else "")
    return f"device {number}"


def _birth(fd: int) -> str:
    """Nanoseconds; empty where the file system or the C library does not tell (statx(2))."""
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    statx = getattr(_libc, "statx", None)
    if statx is None or statx(fd, b"", _AT_EMPTY_PATH, _STATX_BTIME, buffer) != 0:
        return ""
    (mask,) = struct.unpack_from("=I", buffer)
    seconds, nanoseconds = struct.unpack_from("=qI", buffer, _BTIME_AT)
    return str(seconds * 10**9 + nanoseconds) if mask & _STATX_BTIME else ""


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
