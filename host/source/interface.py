"""What every source is: bytes of a fixed size that threads read and, where it can, write, flush, discard and zero.

The public operations check the range once for all kinds and raise OSError with the errno the gadget is to see: EINVAL
for a range that is not whole blocks inside, EROFS and EOPNOTSUPP for what this source cannot do. The kinds fill in the
underscored ones and advertise in `can` only what they have. Several threads call at once. Used by host.source.executor.
"""

import errno
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Flag, auto


class Can(Flag):
    """Operations beyond reading."""

    WRITE = auto()
    DISCARD = auto()  # the blocks read as zeroes or as before: only a hint
    WRITE_ZEROES = auto()


@dataclass(frozen=True, slots=True)
class Geometry:
    """`block_size` is the smallest unit of I/O; physical and optimal sizes are None where nobody knows."""

    size_bytes: int
    block_size: int = 512
    physical_block_size: int | None = None
    optimal_io_bytes: int | None = None

    @property
    def blocks(self) -> int:
        return self.size_bytes // self.block_size


def fails(number: int, what: str = "") -> OSError:
    """The error with this errno, for raising; `what` is for the log."""
    return OSError(number, f"{os.strerror(number)}: {what}" if what else os.strerror(number))


class Source(ABC):
    """One open source. `identity` stays equal as long as it is the same disk (and for a remote one the same bytes)."""

    geometry: Geometry
    identity: str
    can: Can

    @property
    def read_only(self) -> bool:
        return Can.WRITE not in self.can

    @property
    def fingerprint(self) -> str:
        """What an overlay remembers of the source under it, for years: equal after a reboot and on another machine."""
        return self.identity

    def read(self, offset: int, into: memoryview) -> None:
        """Fill `into` whole, or raise."""
        self._inside(offset, len(into))
        self._read(offset, into)

    def read_now(self, offset: int, into: memoryview) -> bool:
        """As `read`, but False instead of waiting for a disk or a network: `into` may then be filled in part."""
        self._inside(offset, len(into))
        return self._read_now(offset, into)

    def write_now(self, offset: int, data: memoryview) -> bool:
        """As `write`, but False instead of waiting: `data` may then be written in part, and is to be written again."""
        self._inside(offset, len(data))
        self._needs(Can.WRITE)
        return self._write_now(offset, data)

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data`, or raise: then each block of the range is old, new or torn."""
        self._inside(offset, len(data))
        self._needs(Can.WRITE)
        self._write(offset, data)

    def flush(self) -> None:
        """What was written before is on stable storage when this returns."""
        if not self.read_only:
            self._flush()

    def discard(self, offset: int, size_bytes: int) -> None:
        self._inside(offset, size_bytes)
        self._needs(Can.DISCARD)
        self._discard(offset, size_bytes)

    def write_zeroes(self, offset: int, size_bytes: int, unmap: bool = False) -> None:
        """With `unmap` the space may be given back, if the range then still reads as zeroes."""
        self._inside(offset, size_bytes)
        self._needs(Can.WRITE_ZEROES)
        self._write_zeroes(offset, size_bytes, unmap)

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def _read(self, offset: int, into: memoryview) -> None: ...

    def _read_now(self, offset: int, into: memoryview) -> bool:
        return False

    def _write_now(self, offset: int, data: memoryview) -> bool:
        return False

    def _write(self, offset: int, data: memoryview) -> None:
        raise NotImplementedError  # like those below: unreachable unless advertised and forgotten

    def _flush(self) -> None:
        raise NotImplementedError

    def _discard(self, offset: int, size_bytes: int) -> None:
        raise NotImplementedError

    def _write_zeroes(self, offset: int, size_bytes: int, unmap: bool) -> None:
        raise NotImplementedError

    def _inside(self, offset: int, size_bytes: int) -> None:
        unit, end = self.geometry.block_size, self.geometry.size_bytes
        if size_bytes <= 0 or offset < 0 or offset % unit or size_bytes % unit or offset + size_bytes > end:
            raise fails(errno.EINVAL, f"{size_bytes} bytes at {offset} are not whole blocks of {unit} within {end}")

    def _needs(self, operation: Can) -> None:
        if self.read_only:
            raise fails(errno.EROFS)
        if operation not in self.can:
            raise fails(errno.EOPNOTSUPP)
