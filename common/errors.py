"""The few errors of the project. Each one tells its catcher what to do; everything else is OSError with its errno.

Raised everywhere, caught at the edges: role shells (crash-only exit), the command line (one line, exit status).
"""

from enum import IntEnum
from typing import Final


class Exit(IntEnum):
    """Exit statuses of commands; see docs in README. Roles use RoleExit."""

    DONE = 0
    FAULT = 1
    BAD_INPUT = 2
    BUSY = 3
    LACKING = 4
    DOWN = 5


class RoleExit(IntEnum):
    """What a role's exit status means to the watchdog."""

    DRAINED = 0
    RESTART = 10
    NEVER = 20


class ReplugError(Exception):
    """Base of our own errors. Its text is one line: `what is wrong: why: what to do`."""


class WireError(ReplugError):
    """The peer (another side or another process) sent bytes that mean nothing here. Count, drop or disconnect."""


class Refused(ReplugError):
    """We will not do it. `status` is the exit status a command gives for it."""

    def __init__(self, text: str, status: Exit = Exit.BAD_INPUT) -> None:
        super().__init__(text)
        self.status = status


class Gone(ReplugError):
    """The other end is dead or the ground has moved. A role that sees it exits and is started again (crash-only)."""


class Illegal(ReplugError):
    """An event that the core's table does not have in this state: a bug of ours. It changed nothing."""


MALFORMED: Final = (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What a reader of foreign JSON or msgpack may meet: another type than it hoped for, infinity, a nest without end."""
