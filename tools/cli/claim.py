"""One command at a time brings a side up: a second would end, or fork beside, what the first has just made.

A flock on a file beside the runtime directory, held from the look at what is there until the side is up; the kernel
gives it back when its holder dies. Used by `gadget up` and `host serve`.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from bus.runtime import Runtime
from common.errors import Exit, Refused


@contextlib.contextmanager
def bringing_up(runtime: Runtime, command: str) -> Iterator[None]:
    """Refused (3) while another process is inside for the same side and instance. Leaves no file behind."""
    path = claim_path(runtime)
    fd = _claim(path, runtime, command)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock goes: who takes it now sees that the name is no longer its
        os.close(fd)
        with contextlib.suppress(OSError):
            path.parent.rmdir()  # if nothing came of it


def clear_stale(runtime: Runtime) -> None:
    """Take away what a command left that was killed while it brought the side up. One that lives keeps its own."""
    if claim_path(runtime).exists():
        with contextlib.suppress(Refused), bringing_up(runtime, "down"):
            pass


def claim_path(runtime: Runtime) -> Path:
    return runtime.root.with_name(f".{runtime.root.name}.up")


def _claim(path: Path, runtime: Runtime, command: str) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            continue  # the last one out has just taken the directory away
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
            os.close(fd)
            who = f"pid {holder}" if holder else "another command"
            what = f"{command}: {runtime.side} is being brought up already as instance {runtime.instance!r}"
            cure = f"wait for it, or --instance starts another, or 'replug {runtime.side} down' ends it"
            raise Refused(f"{what}: {who}: {cure}", Exit.BUSY) from None
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(fd).st_ino == path.stat().st_ino:
                os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
                return fd
        os.close(fd)  # its holder has just unlinked it
