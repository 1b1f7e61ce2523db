"""Runs in the source's process, beneath host.source.file: writes down when each write and fdatasync begins and ends.

The record is a file of lines that every incarnation of the source appends to, so a kill leaves a beginning without an
end. It is a block layer with a cache in which nothing is sure but what an fdatasync covered: stricter than a real one.
"""

import itertools
import json
import os
import threading
from types import SimpleNamespace
from typing import Any

from host.source import file as beneath

WITHOUT_FDATASYNC, TOO_EARLY = "without fdatasync", "answered before fdatasync ends"


class Recorder:
    """In the place of the os module in host.source.file. `fault`: what is broken on purpose, to see it found."""

    def __init__(self, path: str, fault: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._fault, self._numbers = fault, itertools.count()

    def _say(self, **fields: Any) -> None:
        os.write(self._fd, json.dumps({"pid": os.getpid(), **fields}).encode() + b"\n")  # one write: lines do not mix

    def pwritev(self, fd: int, buffers: list[Any], offset: int, flags: int = 0) -> int:
        """One that is refused because it would wait changes nothing; that it may have is the stricter assumption."""
        number = next(self._numbers)
        data = b"".join(bytes(buffer) for buffer in buffers)
        self._say(do="write", number=number, offset=offset, data=data.hex())
        try:
            return os.pwritev(fd, buffers, offset, flags)
        finally:
            self._say(do="written", number=number)

    def fdatasync(self, fd: int) -> None:
        if self._fault == WITHOUT_FDATASYNC:
            return
        if self._fault == TOO_EARLY:
            threading.Timer(0.05, self._sync, (fd,)).start()
            return
        self._sync(fd)

    def _sync(self, fd: int) -> None:
        number = next(self._numbers)
        self._say(do="sync", number=number)
        os.fdatasync(fd)
        self._say(do="synced", number=number)

    def namespace(self) -> SimpleNamespace:
        return SimpleNamespace(**{**vars(os), "pwritev": self.pwritev, "fdatasync": self.fdatasync})


def record(path: str, fault: str = "") -> None:
    """From here on everything that host.source.file does is recorded in `path`."""
    vars(beneath)["os"] = Recorder(path, fault).namespace()
