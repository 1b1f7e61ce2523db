"""One file or block device as a source: opened, locked, its geometry checked, and the four operations on it.

Operations run in threads, several at a time, and return 0 or the kernel's errno. Bytes go straight between the file and
the arena. Called by host.source.role; may raise only while it is opened.
"""

import ctypes
import errno
import fcntl
import os
import stat
from pathlib import Path
from threading import Lock

from common.errors import Exit, Refused
from common.wire import ExportRecord, Op
from host.source.core import Job
from host.source.latch import Latch

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # FALLOC_FL_*, linux/falloc.h

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc.fallocate64
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class SourceFile:
    """The open file. Its lock lasts as long as this process, so that nobody else serves it meanwhile."""

    def __init__(self, path: Path, record: ExportRecord, read_only: bool, latch: Latch) -> None:
        """Open and lock. Refused: (busy) if another process serves it, (bad input) if it is not what was announced.

        OSError of open(2) otherwise: ENOENT, EACCES; EBUSY for a block device that is mounted or held.
        """
        self.path, self.read_only = path, read_only
        self._latch, self._flushing = latch, Lock()
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise Refused(f"{path}: neither a file nor a block device: give a disk image")
        # O_EXCL without O_CREAT is for block devices: refused while the kernel has it mounted (open(2)).
        exclusive = os.O_EXCL if stat.S_ISBLK(mode) else 0
        self._fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | exclusive)
        try:
            self._lock()
            self._check(record)
        except BaseException:
            os.close(self._fd)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_SH if self.read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            how = "locked for writing" if self.read_only else "locked"
            raise Refused(f"{self.path}: already served, or {how} by another program: end that", Exit.BUSY) from None

    def _check(self, record: ExportRecord) -> None:
        size_bytes = os.lseek(self._fd, 0, os.SEEK_END)
        if size_bytes != record.size_bytes:
            raise Refused(
                f"{self.path}: has {size_bytes} bytes, but {record.size_bytes} were announced: "
                "it was changed: serve it anew, as another disk"
            )

    @property
    def failed(self) -> str | None:
        """Why nothing may be written any more."""
        return self._latch.reason

    def close(self) -> None:
        os.close(self._fd)

    # -- operations (in threads) ---------------------------------------------------------------------------------
    def do(self, job: Job, arena: memoryview) -> int:
        """Run one job; returns its status. `arena` is the memory that the job's generation named."""
        try:
            if job.op is Op.READ:
                return self._read(job, arena)
            if self.failed is not None:
                return errno.EIO
            if job.op is Op.FLUSH:
                return self._flush()
            if self.read_only:
                return errno.EROFS
            return self._write(job, arena) if job.op is Op.WRITE else self._discard(job)
        except OSError as error:
            return error.errno or errno.EIO

    def _read(self, job: Job, arena: memoryview) -> int:
        done = 0
        while done < job.size_bytes:
            view = arena[job.arena_offset + done : job.arena_offset + job.size_bytes]
            count = os.preadv(self._fd, [view], job.file_offset + done)
            if count == 0:
                return errno.EIO  # past the end: the file was cut under us, and what was there is lost
            done += count
        return 0

    def _write(self, job: Job, arena: memoryview) -> int:
        done = 0
        while done < job.size_bytes:
            view = arena[job.arena_offset + done : job.arena_offset + job.size_bytes]
            done += os.pwritev(self._fd, [view], job.file_offset + done)
        return 0

    def _flush(self) -> int:
        """A FLUSH covers the writes completed before it was sent, and those have returned: nothing to order.

        One at a time: of two fdatasyncs at once on one descriptor the kernel tells only the first of an error, and the
        second would be acknowledged although its writes are gone. host.source.latch says why a failure is for good.
        """
        with self._flushing:
            if self.failed is not None:
                return errno.EIO
            try:
                if not self.read_only:
                    os.fdatasync(self._fd)
                return 0
            except OSError as error:
                self._latch.set(f"fdatasync: {error.strerror}: acknowledged writes may be lost")
                return error.errno or errno.EIO

    def _discard(self, job: Job) -> int:
        """EOPNOTSUPP where the file system has no holes."""
        if _fallocate(self._fd, _PUNCH_HOLE | _KEEP_SIZE, job.file_offset, job.size_bytes) != 0:
            return ctypes.get_errno()
        return 0
