"""`fault:SWITCH?...&over=SOURCE`: another source that misbehaves while the file SWITCH exists.

Options: ops=read,write,flush,discard,write_zeroes (default: all), error=ERRNO (a name of errno(3), exactly that is
told), delay_ms=N before the operation, torn (a failing write or read has done its first half). `short` cuts a read:
the first half is there, then EIO, as from a file cut under us. Without SWITCH it is the inner source, nothing else.
"""

import contextlib
import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum, auto
from pathlib import Path

from host.source.interface import Source, fails

_NOTHING = memoryview(b"")


class Operation(StrEnum):
    READ = auto()
    WRITE = auto()
    FLUSH = auto()
    DISCARD = auto()
    WRITE_ZEROES = auto()


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong. `error` 0: nothing but the delay."""

    error: int = 0
    operations: frozenset[Operation] = frozenset(Operation)
    delay_s: float = 0.0
    torn: bool = False
    short: bool = False


class FaultSource(Source):
    """Geometry, identity and abilities are the inner source's."""

    def __init__(self, switch: Path, fault: Fault, inner: Source) -> None:
        self._switch, self._fault, self._inner = switch, fault, inner
        self.geometry, self.identity, self.can = inner.geometry, inner.identity, inner.can

    def close(self) -> None:
        self._inner.close()

    def _read(self, offset: int, into: memoryview) -> None:
        half = into[: self._half(len(into))]
        if self._fault.short and self._armed(Operation.READ):
            time.sleep(self._fault.delay_s)
            self._partly(half, lambda: self._inner.read(offset, half))
            raise fails(self._fault.error or errno.EIO, "short, by fault:")
        self._strike(Operation.READ, half, lambda: self._inner.read(offset, half))
        self._inner.read(offset, into)

    def _write(self, offset: int, data: memoryview) -> None:
        half = data[: self._half(len(data))]
        self._strike(Operation.WRITE, half, lambda: self._inner.write(offset, half))
        self._inner.write(offset, data)

    def _flush(self) -> None:
        self._strike(Operation.FLUSH)
        self._inner.flush()

    def _discard(self, offset: int, size_bytes: int) -> None:
        self._strike(Operation.DISCARD)
        self._inner.discard(offset, size_bytes)

    def _write_zeroes(self, offset: int, size_bytes: int, unmap: bool) -> None:
        self._strike(Operation.WRITE_ZEROES)
        self._inner.write_zeroes(offset, size_bytes, unmap)

    def _half(self, size_bytes: int) -> int:
        return size_bytes // 2 // self.geometry.block_size * self.geometry.block_size

    def _armed(self, operation: Operation) -> bool:
        return operation in self._fault.operations and os.path.lexists(self._switch)

    def _strike(
        self, operation: Operation, half: memoryview = _NOTHING, do_half: Callable[[], None] = lambda: None
    ) -> None:
        if not self._armed(operation):
            return
        time.sleep(self._fault.delay_s)
        if self._fault.error:
            if self._fault.torn:
                self._partly(half, do_half)
            raise fails(self._fault.error, "by fault:")

    @staticmethod
    def _partly(half: memoryview, do_half: Callable[[], None]) -> None:
        """The error told is the one asked for, whatever the half meets."""
        if len(half):
            with contextlib.suppress(OSError):
                do_half()
