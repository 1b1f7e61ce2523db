"""Runs the jobs of host.source.core on a source: bytes between it and the arena, an errno each, the latch of failure.

Called in threads by host.source.role, several at a time; never raises for what a source reports.
"""

import errno
from threading import Lock

from common.wire import Op
from host.source.core import Job
from host.source.interface import Source
from host.source.latch import Latch


class Executor:
    """One source and the record of its failure."""

    def __init__(self, source: Source, latch: Latch) -> None:
        self.source = source
        self._latch, self._flushing = latch, Lock()

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
                if job.fua:
                    self._flush()
            elif job.op is Op.WRITE_ZEROES:
                self.source.write_zeroes(job.file_offset, job.size_bytes)
            else:
                self.source.discard(job.file_offset, job.size_bytes)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def _flush(self) -> None:
        """A FLUSH covers the writes completed before it was sent, and those have returned: nothing to order.

        One at a time: of two fdatasyncs at once on one descriptor the kernel tells only the first of an error, and the
        second would be acknowledged although its writes are gone. host.source.latch says why a failure is for good.
        """
        with self._flushing:
            if self.failed is not None:
                raise OSError(errno.EIO, self.failed)
            try:
                self.source.flush()
            except OSError as error:
                self._latch.set(f"flush: {error.strerror}: acknowledged writes may be lost")
                raise
