"""The record that an export has failed for good: acknowledged writes may be lost, so nothing may be written any more.

After a failed fdatasync the kernel may have dropped the dirty pages and marked them clean: the next fdatasync would
succeed and lie, in this process or in the successor that redoes the FLUSH. So the failure is written down in the
runtime directory *before* it is answered, and every successor reads it before it serves. The page it needs is allocated
when the source starts, for at the moment of failure a full tmpfs must not stand in the way.

It is cleared by `replug host down` (or Ctrl-C of `host serve`), which removes the runtime directory; a new `host serve`
then starts afresh. A side that was killed leaves it, and the next `host serve` finds it. What it cannot cover: a kill
while the kernel is in that fdatasync, or between its report and the record. The kernel then marks the error as seen,
though nobody has seen it, so that the successor's own open file is not told of it (errseq_t, lib/errseq.c).
"""

import os
from pathlib import Path
from typing import Self

from bus.runtime import Runtime
from common import limits


class Latch:
    """The record of one export, open for the life of its source."""

    def __init__(self, path: Path) -> None:
        """Open it, or make it with room for one reason. `reason` is what a predecessor left, or None."""
        path.parent.mkdir(mode=0o700, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        os.posix_fallocate(self._fd, 0, limits.PAGE)
        # Any byte but zero means failed: a record cut short by a kill is still a record.
        text = os.pread(self._fd, limits.PAGE, 0).rstrip(b"\0")
        self.reason: str | None = text.decode(errors="replace") if text else None

    @classmethod
    def of(cls, runtime: Runtime, export_id: int) -> Self:
        """Named by the export's id, which follows its source: another image under the same name is not failed."""
        return cls(runtime.root / "failed" / f"{export_id:08x}")

    def set(self, reason: str) -> None:
        """Recorded when this returns; the first reason stays."""
        if self.reason is None:
            self.reason = reason  # first: if the record cannot be written, this process at least knows
            os.pwrite(self._fd, reason.encode()[: limits.PAGE], 0)

    def close(self) -> None:
        os.close(self._fd)
