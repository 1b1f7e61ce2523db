"""A role's log: bounded, never blocking I/O, one line an event, in a file on tmpfs that is cut over at a size.

Not the standard logging module: its handlers may block on a full pipe or journald, and a stopped log reader must not
stop a disk. A line that cannot be written is counted, and the count is told with the next one that can.
"""

import os
import time
from enum import IntEnum
from pathlib import Path

from common import limits


class Level(IntEnum):
    DEBUG = 10
    INFO = 20
    WARNING = 30
    ERROR = 40


class Log:
    """Append lines to `path`; at LOG_BYTES the file becomes `path`.1 and a new one begins."""

    def __init__(self, path: Path, role: str, level: Level = Level.INFO) -> None:
        self._path, self._role, self.level = path, role, level
        self._dropped = 0
        self._fd = self._open()

    def debug(self, text: str) -> None:
        self.line(Level.DEBUG, text)

    def info(self, text: str) -> None:
        self.line(Level.INFO, text)

    def warning(self, text: str) -> None:
        self.line(Level.WARNING, text)

    def error(self, text: str) -> None:
        self.line(Level.ERROR, text)

    def line(self, level: Level, text: str) -> None:
        """One line at `level`. Never raises and never waits."""
        if level < self.level:
            return
        now = time.time()
        stamp = time.strftime("%H:%M:%S", time.localtime(now)) + f".{int(now * 1000) % 1000:03d}"
        lost = f" [{self._dropped} lines lost before this]" if self._dropped else ""
        clean = text.replace("\n", "\\n")[: limits.LOG_LINE]
        data = f"{stamp} {level.name.lower():7} {self._role}[{os.getpid()}] {clean}{lost}\n".encode(errors="replace")
        try:
            if os.write(self._fd, data) == len(data):
                self._dropped = 0
            if os.lseek(self._fd, 0, os.SEEK_CUR) > limits.LOG_BYTES:
                self._cut()
        except OSError:
            self._dropped += 1

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def _cut(self) -> None:
        os.replace(self._path, f"{self._path}.1")
        os.close(self._fd)
        self._fd = self._open()
