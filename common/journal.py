"""Lines of a log to journald, in its native protocol (systemd.journal-fields(7)): one datagram each, never waited for.

Only under a unit whose output goes to the journal (JOURNAL_STREAM is set). A journal that does not read in time loses
lines, and the log file has them still: journald may itself wait for the disk that we serve.
"""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress

PATH = "/run/systemd/journal/socket"
_PRIORITY = {10: 7, 20: 6, 30: 4, 40: 3}  # by common.log.Level: debug, info, warning, err of syslog(3)


class Journal:
    """One unconnected socket: journald may be replaced at any time, the path stays."""

    def __init__(self, path: str = PATH) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)

    @staticmethod
    def of_environment() -> "Journal | None":
        """None where nobody has connected us to a journal."""
        return Journal() if "JOURNAL_STREAM" in os.environ and os.path.exists(PATH) else None

    def send(self, level: int, record: Mapping[str, object]) -> None:
        with suppress(OSError):
            self._socket.sendto(encode(level, record), self._path)


def encode(level: int, record: Mapping[str, object]) -> bytes:
    """NAME=value lines. Fields of ours are REPLUG_ROLE, REPLUG_IO and so on, for `journalctl REPLUG_ROLE=usb`."""
    fields = {
        "MESSAGE": record["text"],
        "PRIORITY": _PRIORITY.get(level, 7),
        "SYSLOG_IDENTIFIER": "replug",
        **{f"REPLUG_{name.upper()}": value for name, value in record.items() if name not in ("text", "time", "level")},
    }
    return "".join(f"{name}={_one_line(value)}\n" for name, value in fields.items()).encode(errors="replace")


def _one_line(value: object) -> str:
    return str(value).replace("\n", "\\n")
