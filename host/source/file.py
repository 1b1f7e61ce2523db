"""A regular file or a block device as a source: opened, locked, read and written by pread and pwrite.

Sparse aware: discard punches a hole, write_zeroes too if it may, else the file system makes zeroes as it can. A block
device adds its own geometry and BLKDISCARD and BLKZEROOUT (linux/fs.h), so that whatever the host has as one (LVM, RBD,
NBD, iSCSI) is served as it is. Opened by host.source.opening and by the command line's first look.
"""

import array
import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from common.errors import Exit, Refused
from host.source import identity
from host.source.interface import Can, Geometry, Source, fails
from host.source.inuse import image_behind, refuse_in_use

_KEEP_SIZE, PUNCH_HOLE, _ZERO_RANGE = 1, 2, 0x10  # FALLOC_FL_*, linux/falloc.h
_BLKSSZGET, _BLKPBSZGET, _BLKIOOPT = 0x1268, 0x127B, 0x1279  # linux/fs.h: int, unsigned int, unsigned int
_BLKGETSIZE64 = 0x80081272  # u64, though the number says size_t
_BLKDISCARD, _BLKZEROOUT = 0x1277, 0x127F  # u64[2]: start, length
_TMPFS, _RAMFS = 0x01021994, 0x858458F6  # linux/magic.h
_ZEROES = memoryview(bytes(1 << 20))  # written at a time where the file system cannot make zeroes itself

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc.fallocate64
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class _Opened(Source):
    """What both have in common. The lock lasts as long as this process, so that nobody else serves it meanwhile."""

    def __init__(self, path: Path, read_only: bool) -> None:
        self.path = path
        status = os.stat(path)
        mode = status.st_mode
        # O_EXCL without O_CREAT is for block devices: refused while the kernel has it mounted (open(2)).
        exclusive = os.O_EXCL if stat.S_ISBLK(mode) else 0
        self._fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | exclusive)
        try:
            self._lock(self._fd, read_only)
            self._image = self._lock_image(status, read_only)
            self._now_flags = [0 if in_memory(self._fd) else os.RWF_NOWAIT] * 2  # of a read, of a write
            self._can_now = [True, True]
            self.can = Can(0) if read_only else Can.WRITE | Can.WRITE_ZEROES
            self._look()
        except BaseException:
            os.close(self._fd)
            raise

    def _look(self) -> None:
        """Fill in geometry, identity and what else it can."""
        raise NotImplementedError

    def _lock_image(self, status: os.stat_result, read_only: bool) -> int | None:
        """A file that is a loop device is refused; the file behind a loop device is locked with it."""
        if stat.S_ISREG(status.st_mode):
            refuse_in_use(self.path, status)
            return None
        image = image_behind(status)
        if image is None or not image.is_file():
            return None
        fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._lock(fd, read_only)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _lock(self, fd: int, read_only: bool) -> None:
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            how = "locked for writing" if read_only else "locked"
            raise Refused(f"{self.path}: already served, or {how} by another program: end that", Exit.BUSY) from None

    @property
    def fingerprint(self) -> str:
        """Only the size: device and inode numbers are others after a reboot or a copy of the image."""
        return f"{self.geometry.size_bytes} bytes"

    def close(self) -> None:
        os.close(self._fd)
        if self._image is not None:
            os.close(self._image)

    def _read(self, offset: int, into: memoryview) -> None:
        done = 0
        while done < len(into):
            count = os.preadv(self._fd, [into[done:]], offset + done)
            if count == 0:
                raise fails(errno.EIO, "the file was cut short under us")  # what was there is lost
            done += count

    def _write(self, offset: int, data: memoryview) -> None:
        done = 0
        while done < len(data):
            done += os.pwritev(self._fd, [data[done:]], offset + done)

    def _read_now(self, offset: int, into: memoryview) -> bool:
        return self._now(0, os.preadv, offset, into)

    def _write_now(self, offset: int, data: memoryview) -> bool:
        return self._now(1, os.pwritev, offset, data)

    def _now(self, way: int, call: Callable[..., int], offset: int, memory: memoryview) -> bool:
        """RWF_NOWAIT (preadv2(2)): what lies in the page cache, or fits there. Not every file system knows it."""
        if not self._can_now[way]:
            return False
        try:
            return call(self._fd, [memory], offset, self._now_flags[way]) == len(memory)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            self._can_now[way] = False
            return False

    def _flush(self) -> None:
        os.fdatasync(self._fd)


class FileSource(_Opened):
    """A regular file."""

    def _look(self) -> None:
        status = os.fstat(self._fd)
        self.geometry = Geometry(status.st_size, optimal_io_bytes=status.st_blksize)
        self.identity = identity.of_file(self._fd)
        # Past the end there is nothing to lose: the question is only whether this file system has holes.
        if not self.read_only and fallocated(self._fd, PUNCH_HOLE, status.st_size, 4096):
            self.can |= Can.DISCARD

    def _write(self, offset: int, data: memoryview) -> None:
        self._uncut(offset + len(data))
        super()._write(offset, data)

    def _write_now(self, offset: int, data: memoryview) -> bool:
        self._uncut(offset + len(data))
        return super()._write_now(offset, data)

    def _uncut(self, end: int) -> None:
        """A write past the end would make the file long again: what was cut off would then read as zeroes."""
        if os.lseek(self._fd, 0, os.SEEK_END) < end:
            raise fails(errno.EIO, "the file was cut short under us")

    def _discard(self, offset: int, size_bytes: int) -> None:
        if not fallocated(self._fd, PUNCH_HOLE, offset, size_bytes):
            raise fails(errno.EOPNOTSUPP)

    def _write_zeroes(self, offset: int, size_bytes: int, unmap: bool) -> None:
        self._uncut(offset + size_bytes)
        if unmap and fallocated(self._fd, PUNCH_HOLE, offset, size_bytes):
            return
        if not fallocated(self._fd, _ZERO_RANGE, offset, size_bytes):
            for start in range(0, size_bytes, len(_ZEROES)):
                self._write(offset + start, _ZEROES[: size_bytes - start])


class DeviceSource(_Opened):
    """A block device."""

    def _look(self) -> None:
        rdev = os.fstat(self._fd).st_rdev
        size_bytes = struct.unpack("Q", fcntl.ioctl(self._fd, _BLKGETSIZE64, bytes(8)))[0]
        block, physical, optimal = (
            struct.unpack("I", fcntl.ioctl(self._fd, number, bytes(4)))[0]
            for number in (_BLKSSZGET, _BLKPBSZGET, _BLKIOOPT)
        )
        self.geometry = Geometry(size_bytes, block, physical, optimal or None)
        self.identity = identity.of_device(rdev)
        limit = Path(f"/sys/dev/block/{os.major(rdev)}:{os.minor(rdev)}/queue/discard_max_bytes")
        # A partition has no queue of its own: its disk's counts.
        for file in (limit, limit.resolve().parents[1] / "queue" / limit.name):
            if not self.read_only and file.exists() and int(file.read_text()):
                self.can |= Can.DISCARD

    def _discard(self, offset: int, size_bytes: int) -> None:
        fcntl.ioctl(self._fd, _BLKDISCARD, array.array("Q", (offset, size_bytes)))

    def _write_zeroes(self, offset: int, size_bytes: int, unmap: bool) -> None:
        """The kernel writes zeroes itself where the device cannot (blkdev_issue_zeroout); a hole it refuses then."""
        if unmap and fallocated(self._fd, PUNCH_HOLE, offset, size_bytes):
            return
        fcntl.ioctl(self._fd, _BLKZEROOUT, array.array("Q", (offset, size_bytes)))


def open_path(path: Path, read_only: bool) -> FileSource | DeviceSource:
    """Open and lock what lies there. Refused: (busy) if another process serves it, (bad input) if it is neither.

    OSError of open(2) otherwise: ENOENT, EACCES; EBUSY for a block device that is mounted or held.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISREG(mode):
        return FileSource(path, read_only)
    if stat.S_ISBLK(mode):
        return DeviceSource(path, read_only)
    raise Refused(f"{path}: neither a file nor a block device: give a disk image")


def in_memory(fd: int) -> bool:
    """Is it on a tmpfs: nothing there ever waits for a disk, and RWF_NOWAIT is not known."""
    words = (ctypes.c_long * 32)()  # struct statfs, with room to spare; f_type is its first
    return _libc.fstatfs(fd, words) == 0 and words[0] in (_TMPFS, _RAMFS)


def fallocated(fd: int, mode: int, offset: int, size_bytes: int) -> bool:
    """False: this file system cannot. Any other failure is raised."""
    if _fallocate(fd, mode | _KEEP_SIZE, offset, size_bytes) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EOPNOTSUPP, errno.ENOSYS):
        return False
    raise fails(number)
