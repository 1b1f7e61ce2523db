"""Tell a service manager how the side is: sd_notify(3)'s datagrams to $NOTIFY_SOCKET, in plain Python.

The watchdog sends them, and only it: WATCHDOG=1 while it works, STATUS= when that changes. No MAINPID: there is no
process whose death is the side's (packaging/systemd tells how the units live with that). Without $NOTIFY_SOCKET all of
it does nothing. Never blocks and never fails: a manager that does not read must not stop the side.
"""

import contextlib
import os
import socket
from collections.abc import Iterable, Mapping

from common import limits

_LINE = 200  # characters of a STATUS that `systemctl status` shows on one line


class Notifier:
    """`pings_every_s` is how often the manager wants to hear `alive`, None if it does not."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        self._status = ""
        self.pings_every_s: float | None = None
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
            self.pings_every_s = interval_of(environment.get("WATCHDOG_USEC", ""))

    def ready(self) -> None:
        self._send("READY=1")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Sent only if it is another than the last."""
        text = text.replace("\n", " ")[:_LINE]
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def _send(self, message: str) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto(message.encode(), self._address)


def interval_of(watchdog_usec: str) -> float | None:
    """How often to ping: half of what is allowed, as sd_watchdog_enabled(3) advises, and no more often than our beat.

    $WATCHDOG_PID is not looked at: it names the command that started the side, which has long ended.
    """
    if not watchdog_usec.isdecimal() or int(watchdog_usec) == 0:
        return None
    return min(int(watchdog_usec) / 2e6, limits.BEAT_S)


def summary(roles: Iterable[tuple[str, str, str]]) -> str:
    """One line for STATUS, of (role, state, reason)."""
    all_roles = list(roles)
    odd = [f"{role} {state}" + (f": {why}" if why else "") for role, state, why in all_roles if state != "running"]
    if not odd:
        return f"{len(all_roles)} processes, all running"
    return f"{len(all_roles) - len(odd)} of {len(all_roles)} processes running; {', '.join(odd)}"
