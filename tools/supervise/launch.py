"""Execute a side's first spawner, and watch sides from outside: who lives, and waiting for deaths.

Called by the command line, and by a watchdog whose spawner and twin have died at once.
"""

import contextlib
import errno
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import tools
from bus.role import WATCHDOG
from bus.runtime import ProcessRecord, Runtime, living, recorded_roles, start_ticks

SPAWNER = "spawner"


def installation() -> Path:
    """Where the code that runs here lies."""
    return Path(tools.__file__).parent.parent


def pythonpath() -> str:
    before = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(installation()), *([before] if before else [])])


def command(runtime: Runtime) -> list[str]:
    """What executes a spawner of this installation."""
    code = [sys.executable, "-P", "-m", "tools.supervise.spawner"]
    return [*code, str(runtime.root), str(runtime.side), runtime.instance]


def launch(runtime: Runtime) -> "subprocess.Popen[bytes]":
    """Execute a spawner for the plan in `runtime`, in a session of its own: it outlives us and our terminal."""
    return subprocess.Popen(
        command(runtime),
        cwd="/",  # holds no mount busy
        env={**os.environ, "PYTHONPATH": pythonpath()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        umask=0o077,
    )


def supervised(runtime: Runtime) -> bool:
    """Does the watchdog or the spawner of this side live?"""
    return any(living(runtime, role) is not None for role in (WATCHDOG, SPAWNER))


def all_living(runtime: Runtime) -> list[ProcessRecord]:
    """Every process that holds a name of this side."""
    return [record for role in recorded_roles(runtime) if (record := living(runtime, role)) is not None]


def open_pidfd(record: ProcessRecord) -> int | None:
    """A pidfd of exactly that process, or None if it is dead: its pid may be another's by now."""
    try:
        fd = os.pidfd_open(record.pid)
    except OSError as error:
        # EINVAL: dead too, but its number lives on as the session id of its children (a spawner's does).
        if error.errno not in (errno.ESRCH, errno.EINVAL):
            raise
        return None
    if start_ticks(record.pid) == record.start_ticks:
        return fd
    os.close(fd)
    return None


def kill(records: Iterable[ProcessRecord]) -> None:
    """SIGKILL to exactly these processes, as if at one instant.

    All are stopped first: killed one after the other, the last ones would be forking successors of the first.
    """
    fds = [fd for record in records if (fd := open_pidfd(record)) is not None]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for fd in fds:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, number)
    for fd in fds:
        os.close(fd)


def await_deaths(records: Iterable[ProcessRecord], limit_s: float) -> bool:
    """Wait until all are dead, at most `limit_s`. False if one is not."""
    fds = [fd for record in records if (fd := open_pidfd(record)) is not None]
    deadline = time.monotonic() + limit_s
    with selectors.DefaultSelector() as selector:
        for fd in fds:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                selector.unregister(key.fileobj)
        dead = not selector.get_map()
    for fd in fds:
        os.close(fd)
    return dead
