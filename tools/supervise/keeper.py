"""There is always a watchdog: the one thing that the spawner decides by itself.

It is adopted where it lives, forked where it does not, and killed where it is silent; the spawner's loop calls `keep`,
watches the `pidfd` that there may be after it, and waits no longer than `patience`. Deaths before it was there are
backed off.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable

from bus.role import WATCHDOG
from bus.runtime import Runtime, living
from common import limits
from common.log import Log
from tools.supervise.core import describe_exit
from tools.supervise.launch import open_pidfd


class Keeper:
    """`fork` makes a watchdog and returns its pid, or raises OSError."""

    def __init__(self, runtime: Runtime, log: Log, fork: Callable[[], int]) -> None:
        self._runtime, self._log, self._fork = runtime, log, fork
        self.pid: int | None = None
        self.pidfd: int | None = None  # of one that is not our child: its death is told by this
        self._due = 0.0  # monotonic seconds: when to fork, or how long the present wait for a word is
        self._spoke = False  # this one was there
        self._silent_waits = 0
        self._early_deaths = 0
        self._adopt()

    def _adopt(self) -> bool:
        """Is there one that is not our child?"""
        record = living(self._runtime, WATCHDOG)
        fd = open_pidfd(record) if record is not None else None
        if record is None or fd is None:
            return False
        self.pid, self.pidfd = record.pid, fd
        self.heard()
        return True

    def patience(self) -> float:
        """Seconds until `keep` has something to do."""
        return max(0.0, self._due - time.monotonic())

    def heard(self) -> None:
        self._spoke, self._silent_waits, self._due = True, 0, time.monotonic() + limits.SILENCE_S

    def died(self, status: int | None) -> None:
        """It is dead, by a waitpid status if it was our child. The caller has stopped watching its pidfd."""
        how = describe_exit(status, None)
        with contextlib.suppress(OSError):  # a full tmpfs must not hold up its successor
            self._runtime.death_path(WATCHDOG).write_text(how)
        if self.pidfd is not None:
            os.close(self.pidfd)
        early = not self._spoke
        self._early_deaths = self._early_deaths + 1 if early else 0
        pause = limits.BACKOFF_FLOOR_S * 2 ** min(self._early_deaths - 1, 20) if early else 0.0
        self._due = time.monotonic() + min(pause, limits.BACKOFF_CEILING_S)
        self.pidfd = self.pid = None
        again = f", {self._early_deaths} times before it was there" if early else ""
        self._log.warning(f"watchdog is dead: {how}{again}")

    def keep(self) -> None:
        """To be called when nothing is left to be read: what was said must be heard before it is called silent."""
        now = time.monotonic()
        if now < self._due:
            return
        if self.pid is None:
            self._renew(now)
            return
        self._silent_waits += 1
        self._due = now + limits.SILENCE_S
        if self._silent_waits >= limits.SILENT_WAITS:
            self._log.error("watchdog is silent: killed")
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)  # our child, or watched by a pidfd: the pid cannot be another's
            self._silent_waits = 0  # its death is told by its pidfd or by SIGCHLD

    def _renew(self, now: float) -> None:
        # A child of our predecessor's may have taken the name when we had looked already: ours then found it taken.
        if self._adopt():
            return
        try:
            self.pid, self._spoke, self._silent_waits, self._due = self._fork(), False, 0, now + limits.READY_S
        except OSError as error:
            self._log.error(f"no watchdog: fork: {error.strerror}")
            self._due = now + limits.BACKOFF_CEILING_S
