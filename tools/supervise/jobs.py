"""Disposable processes of a role: a function of its entry module that may block, run beside it (queue limits, say).

A job has no name to own and no successor: it ends, and the role's present incarnation is told how. Asked for twice
while it runs, it runs once; it may be done twice all the same, if its spawner dies. Called by tools.supervise.watchdog.
"""

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass

from common.errors import WireError
from tools.supervise.core import describe_exit
from tools.supervise.plan import RoleSpec

_FIRST_SERIAL = 1 << 32  # apart from the core's, which count from 1
MAX_JOBS = 64
_NOT_JOBS = ("prepare", "start", "retire")


@dataclass
class Job:
    spec: RoleSpec
    function: str
    serial: int
    pid: int | None = None


class Jobs:
    """`order(job)` asks the spawner for it, `done(job, ok, reason)` tells the role, `kill(pid)` ends one."""

    def __init__(
        self,
        order: Callable[[Job], None],
        done: Callable[[Job, bool, str], None],
        kill: Callable[[int], None],
    ) -> None:
        self._order, self._done, self._kill = order, done, kill
        self._jobs: dict[tuple[str, str], Job] = {}
        self._serials = itertools.count(_FIRST_SERIAL)

    def ask(self, spec: RoleSpec, function: object) -> None:
        """A role's note `job`. WireError if it names no function that could be a job."""
        if not isinstance(function, str) or not function.isidentifier() or function in _NOT_JOBS:
            raise WireError(f"{spec.role}: {function!r} is not a job")
        key = (spec.role, function)
        if key in self._jobs:
            return
        if len(self._jobs) >= MAX_JOBS:
            raise WireError(f"{spec.role}: {function}: {MAX_JOBS} jobs run already")
        job = self._jobs[key] = Job(spec, function, next(self._serials))
        self._order(job)

    def order_again(self) -> None:
        """A new spawner: what the last one has not answered is ordered again."""
        for job in self._jobs.values():
            if job.pid is None:
                self._order(job)

    def spawned(self, serial: int, pid: int) -> bool:
        """Was that one of ours?"""
        for job in self._jobs.values():
            if job.serial == serial:
                job.pid = pid
        return serial >= _FIRST_SERIAL

    def refused(self, serial: int, why: str) -> bool:
        for key, job in list(self._jobs.items()):
            if job.serial == serial:
                del self._jobs[key]
                self._done(job, False, why)
        return serial >= _FIRST_SERIAL

    def died(self, pid: int, status: int | None, reason: Callable[[str], str | None]) -> bool:
        """`reason(name)` reads what the job left under `reason_name`. False if it was none of ours."""
        for key, job in list(self._jobs.items()):
            if job.pid == pid:
                said = reason(reason_name(job.spec.role, job.function))
                if status is None and said is None:
                    # Its spawner died first, so nobody can tell how it ended; perhaps well. A role must not fail for a
                    # spawner's death, and a job may be done twice.
                    job.pid, job.serial = None, next(self._serials)
                    self._order(job)
                    return True
                del self._jobs[key]
                clean = status is not None and os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
                self._done(job, clean, "" if clean else describe_exit(status, said))
                return True
        return False

    def end_all_of(self, role: str) -> None:
        """The role is being cleared away: nothing of it may hold what it had."""
        for key, job in list(self._jobs.items()):
            if job.spec.role == role:
                del self._jobs[key]
                if job.pid is not None:
                    self._kill(job.pid)


def reason_name(role: str, function: str) -> str:
    """Under which a job leaves its reason: not its role's name, which is alive."""
    return f"{role}.{function}"
