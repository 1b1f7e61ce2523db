"""Payload arenas: a file on tmpfs that two processes map, so that no payload byte travels on the bus.

Each generation of the owner makes a fresh one: else the new generation's data could go out as the old one's, or the old
one's late read land on new data. Allocated and locked before use: a server of a disk must not wait for that disk.
"""

import contextlib
import ctypes
import mmap
import os
from pathlib import Path

from bus.runtime import Runtime
from common import limits
from common.errors import Gone

_libc = ctypes.CDLL(None, use_errno=True)


class Arena:
    """A mapped arena. `memory` is its bytes, `address` where they lie in this process; `locked` if mlock succeeded."""

    def __init__(self, path: Path, mapping: mmap.mmap, generation: int) -> None:
        self.path, self.generation = path, generation
        self._mapping = mapping
        self.memory = memoryview(mapping)
        self.size_bytes = len(mapping)
        anchor = ctypes.c_char.from_buffer(mapping)
        self.address = ctypes.addressof(anchor)
        self.locked = _libc.mlock(ctypes.c_void_p(self.address), ctypes.c_size_t(self.size_bytes)) == 0

    @staticmethod
    def create(runtime: Runtime, owner: str, generation: int, size_bytes: int) -> "Arena":
        """Make `owner`'s arena of this generation, and unlink those of its dead predecessors."""
        path = runtime.arena_path(owner, generation)
        for old in path.parent.glob(f"{owner}@*"):
            if old != path:
                with contextlib.suppress(OSError):
                    old.unlink()
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(fd, 0, size_bytes)  # ENOSPC now, rather than SIGBUS in the middle of an I/O
            return Arena(path, mmap.mmap(fd, size_bytes), generation)
        finally:
            os.close(fd)

    @staticmethod
    def attach(runtime: Runtime, owner: str, generation: int) -> "Arena":
        """Map another role's arena. Gone if it is not there any more: its owner has died, and will say hello again."""
        path = runtime.arena_path(owner, generation)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise Gone(f"arena {path.name}: {error.strerror}: its owner was replaced") from None
        try:
            return Arena(path, mmap.mmap(fd, 0), generation)
        finally:
            os.close(fd)

    def unlink(self) -> None:
        """Remove the name; mappings stay until their processes let go."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()


def slot_bytes(max_io_bytes: int, packet_bytes: int = 1024) -> int:
    """Size of one slot: room for a read rounded up to whole packets, page-aligned for ublk and O_DIRECT."""
    need = -(-max_io_bytes // packet_bytes) * packet_bytes
    return -(-need // limits.PAGE) * limits.PAGE
