"""A role's log: bounded, never blocking I/O, one JSON object a line, in a file on tmpfs that is cut over at a size.

Not the standard logging module: its handlers may block on a full pipe or journald, and a stopped log reader must not
stop a disk. A line that cannot be written is counted, and the count is told with the next one that can. Under a systemd
unit the journal gets each line too. People see `human` of a line.
"""

import json
import os
import time
from contextlib import suppress
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path

from common import limits
from common.journal import Journal


class Level(IntEnum):
    TRACE = 5  # each step of each I/O, by common.follow
    DEBUG = 10
    INFO = 20
    WARNING = 30
    ERROR = 40


Field = str | int | float
_HEAD = ("time", "level", "role", "pid", "text")


class Log:
    """Append lines to `path`; at LOG_BYTES the file becomes `path`.1 and a new one begins.

    A level set with `keep_level` is also that of the successors of this role, until another is set.
    """

    def __init__(self, path: Path, role: str, level: Level = Level.INFO) -> None:
        self._path, self._role = path, role
        self._level_path = path.with_suffix(".level")
        self.level = self._kept_level(level)
        self._dropped = 0
        self._fd = self._open()
        self._journal = Journal.of_environment()

    def debug(self, text: str, **fields: Field) -> None:
        self.line(Level.DEBUG, text, fields)

    def info(self, text: str, **fields: Field) -> None:
        self.line(Level.INFO, text, fields)

    def warning(self, text: str, **fields: Field) -> None:
        self.line(Level.WARNING, text, fields)

    def error(self, text: str, **fields: Field) -> None:
        self.line(Level.ERROR, text, fields)

    def line(self, level: Level, text: str, fields: dict[str, Field] | None = None) -> None:
        """One line at `level`. Never raises and never waits."""
        if level < self.level:
            return
        record: dict[str, Field] = {
            "time": datetime.now(UTC).isoformat(timespec="microseconds"),
            "level": level.name.lower(),
            "role": self._role,
            "pid": os.getpid(),
            "text": text[: limits.LOG_LINE],
            **(fields or {}),
        }
        if self._dropped:
            record["lost"] = self._dropped  # so many lines before this one
        data = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode(errors="replace") + b"\n"
        try:
            if os.write(self._fd, data) == len(data):
                self._dropped = 0
            if os.lseek(self._fd, 0, os.SEEK_CUR) > limits.LOG_BYTES:
                self._cut()
        except OSError:
            self._dropped += 1
        if self._journal is not None and level > Level.TRACE:  # journald writes to a disk, which may be the one traced
            self._journal.send(level, record)

    def keep_level(self, level: Level) -> None:
        """From now on, and for successors. Best effort: a full tmpfs costs the latter only."""
        self.level = level
        with suppress(OSError):
            self._level_path.write_text(level.name)

    def _kept_level(self, level: Level) -> Level:
        with suppress(OSError, KeyError, ValueError):
            return Level[self._level_path.read_text()]
        return level

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def _cut(self) -> None:
        os.replace(self._path, f"{self._path}.1")
        os.close(self._fd)
        self._fd = self._open()


def human(line: str) -> str:
    """A line of a log as people read it, in local time; one that is none of ours (the interpreter's words) as it is."""
    try:
        record = json.loads(line)
        at = datetime.fromisoformat(record["time"]).timestamp()
        head = time.strftime("%H:%M:%S", time.localtime(at)) + f".{int(at * 1000) % 1000:03d}"
        more = "".join(f" {name}={record[name]}" for name in record if name not in _HEAD)
        text = str(record["text"]).replace("\n", "\\n")
        return f"{head} {record['level']:7} {record['role']}[{record['pid']}] {text}{more}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return line
