"""Runs the jobs of host.source.core on a source: bytes between it and the arena, an errno each, the latch of failure.

Called in threads by host.source.role, several at a time; never raises for what a source reports.
"""

import errno
from threading import Lock

from common.ledger import LEDGER_BYTES, Ledger
from common.wire import Op
from host.source.core import Job
from host.source.interface import Source
from host.source.latch import Latch


class Executor:
    """One source, the record of its failure, and what of it was written and not flushed."""

    def __init__(self, source: Source, latch: Latch, ledger: Ledger | None = None) -> None:
        self.source = source
        self._latch, self._flushing = latch, Lock()
        self.ledger = Ledger(bytearray(LEDGER_BYTES)) if ledger is None else ledger
        self._counting = Lock()  # of several threads that end a write at once

    @property
    def failed(self) -> str | None:
        """Why nothing may be written any more."""
        return self._latch.reason

    def do(self, job: Job, arena: memoryview) -> int:
        """Run one job; returns its status. `arena` is the memory that the job's generation named."""
        view = arena[job.arena_offset : job.arena_offset + job.size_bytes]
        try:
            if job.op is Op.READ:
                self.source.read(job.file_offset, view)
            elif job.op is Op.FLUSH:
                self._flush()
            elif self.failed is not None:
                return errno.EIO
            elif job.op is Op.WRITE:
                self.source.write(job.file_offset, view)
                self._wrote(job)
                if job.fua:
                    self._flush()
            elif job.op is Op.WRITE_ZEROES:
                self.source.write_zeroes(job.file_offset, job.size_bytes, job.unmap)
                self._wrote(job)
            else:
                self.source.discard(job.file_offset, job.size_bytes)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def do_now(self, job: Job, arena: memoryview) -> int | None:
        """As `do`, in the role's loop; None if it would have to wait, or may: a thread is to do all of it then."""
        view = arena[job.arena_offset : job.arena_offset + job.size_bytes]
        try:
            if job.op is Op.READ:
                return 0 if self.source.read_now(job.file_offset, view) else None
            if job.op is Op.WRITE and not job.fua and self.failed is None:
                if not self.source.write_now(job.file_offset, view):
                    return None
                self._wrote(job)
                return 0
        except OSError as error:
            return error.errno or errno.EIO
        return None

    def _wrote(self, job: Job) -> None:
        with self._counting:
            self.ledger.wrote(job.size_bytes)

    def _flush(self) -> None:
        """A FLUSH covers the writes completed before it was sent, and those have returned: nothing to order.

        One at a time: of two fdatasyncs at once on one descriptor the kernel tells only the first of an error, and the
        second would be acknowledged although its writes are gone. host.source.latch says why a failure is for good.
        """
        with self._flushing:
            if self.failed is not None:
                raise OSError(errno.EIO, self.failed)
            covered = self.ledger.acknowledged
            try:
                self.source.flush()
            except OSError as error:
                self._latch.set(f"flush: {error.strerror}: acknowledged writes may be lost")
                raise
            with self._counting:
                self.ledger.flushed(covered)
