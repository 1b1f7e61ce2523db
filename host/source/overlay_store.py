"""The file under an overlay: positioned reads and writes, sync, zeroing. Apart so that a test can cut its writes.

Called by host.source.overlay only.
"""

import errno
import fcntl
import os
from pathlib import Path
from typing import Protocol

from common.errors import Exit, Refused
from common.limits import PAGE
from host.source.file import PUNCH_HOLE, fallocated
from host.source.interface import fails


class Store(Protocol):
    """What an overlay needs of its file. `punches`: zeroing gives the space back."""

    punches: bool

    def read(self, offset: int, into: memoryview) -> None: ...
    def write(self, offset: int, data: bytes | memoryview) -> None: ...
    def zero(self, offset: int, size_bytes: int) -> None: ...
    def reserve(self, offset: int, size_bytes: int) -> None: ...
    def sync(self) -> None: ...
    def close(self) -> None: ...


class FileStore:
    """The real one, locked as long as it is open."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise Refused(f"{path}: this overlay is already served: end that", Exit.BUSY) from None
        # Past the end there is nothing to lose: the question is only whether this file system has holes.
        self.punches = fallocated(self._fd, PUNCH_HOLE, os.fstat(self._fd).st_size, PAGE)

    @staticmethod
    def create(path: Path, head: bytes, size_bytes: int) -> None:
        """A sparse file that begins with `head`: there whole or not at all, whenever we are killed or power fails."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size_bytes)
            os.pwrite(fd, head, 0)
            os.fsync(fd)
            os.link(temporary, path)  # never over a map that another process has just made
        finally:
            os.close(fd)
            os.unlink(temporary)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def read(self, offset: int, into: memoryview) -> None:
        done = 0
        while done < len(into):
            count = os.preadv(self._fd, [into[done:]], offset + done)
            if count == 0:
                raise fails(errno.EIO, "the overlay's file was cut short under us")
            done += count

    def write(self, offset: int, data: bytes | memoryview) -> None:
        view, done = memoryview(data), 0
        while done < len(view):
            done += os.pwritev(self._fd, [view[done:]], offset + done)

    def zero(self, offset: int, size_bytes: int) -> None:
        if not fallocated(self._fd, PUNCH_HOLE, offset, size_bytes):
            for start in range(0, size_bytes, PAGE):
                self.write(offset + start, bytes(PAGE)[: size_bytes - start])

    def reserve(self, offset: int, size_bytes: int) -> None:
        """A later write there finds its space, if this file system can promise that. ENOSPC if there is none."""
        fallocated(self._fd, 0, offset, size_bytes)

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def close(self) -> None:
        os.close(self._fd)
