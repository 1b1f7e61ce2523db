"""Where one side of one instance lives on disk: names of sockets, locks, logs, arenas, reasons, state.

The runtime directory is on tmpfs, mode 0700; whoever may enter it may command the side. A role's name is owned by a
flock on its record (pid, start time, generation), because a second bind to a live ipc:// path succeeds silently.
Called by every role, the watchdog and the command line.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from common import limits
from common.errors import MALFORMED, Gone, Refused


class Side(StrEnum):
    GADGET = "gadget"
    HOST = "host"


FORMAT, FIRST_FORMAT = 1, 1  # FIRST: of a file that does not say
"""Of what the processes of one side leave for each other and say to each other: records, plan, memory, lanes, orders.

Raised whenever processes before and after a change could not work side by side, so that `replug upgrade` refuses.
"""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_SUBDIRECTORIES = ("bus", "role", "log", "arena", "reason")
_SUN_PATH = 107  # bytes of sockaddr_un.sun_path without its NUL


def check_name(name: str, what: str = "name") -> str:
    """`name` if it may be part of a path and a socket name, else Refused."""
    if len(name) > limits.MAX_NAME or not _NAME.fullmatch(name):
        raise Refused(f"{name!r}: not a {what}: use up to {limits.MAX_NAME} letters, digits, '-', '_' and '.'")
    return name


def default_base() -> Path:
    """$REPLUG_RUNTIME, /run/replug for root, else $XDG_RUNTIME_DIR/replug."""
    if chosen := os.environ.get("REPLUG_RUNTIME"):
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/run/replug")
    return Path(os.environ.get("XDG_RUNTIME_DIR", f"/tmp/replug-{os.getuid()}")) / "replug"


@dataclass(frozen=True)
class ProcessRecord:
    """Who holds a role's name. `start_ticks` is field 22 of /proc/PID/stat: a pid alone may be reused."""

    role: str
    pid: int
    start_ticks: int
    generation: int
    format: int = FORMAT


@dataclass(frozen=True)
class Runtime:
    """The runtime directory of one side of one instance. Holds paths only; nothing is opened here."""

    side: Side
    instance: str = "default"
    base: Path | None = None

    @property
    def root(self) -> Path:
        return (self.base or default_base()) / f"{self.side}-{self.instance}"

    def create(self) -> None:
        """Make the directory and its parts (idempotent). Refused if it is another user's or too deep for a socket."""
        check_name(self.instance, "instance name")
        self.endpoint("session", "control")  # Refused now, rather than by the first role
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.root.stat().st_uid != os.geteuid():
            raise Refused(f"{self.root}: belongs to another user: remove it or set REPLUG_RUNTIME")
        self.root.chmod(0o700)
        for name in _SUBDIRECTORIES:
            (self.root / name).mkdir(mode=0o700, exist_ok=True)

    def remove(self) -> None:
        """Delete the directory, and the base if it is empty then."""
        shutil.rmtree(self.root, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.root.parent.rmdir()

    def endpoint(self, role: str, lane: str) -> str:
        """ZeroMQ endpoint of a role's lane: `control`, `data`, `session` or `roles`."""
        path = os.fspath(self.root / "bus" / f"{role}.{lane}")
        if len(os.fsencode(path)) > _SUN_PATH:
            raise Refused(f"{path}: too long for a socket name: choose a shorter export or instance name")
        return f"ipc://{path}"

    def spawner_socket(self) -> Path:
        return self.root / "bus" / "spawner"

    def metrics_socket(self) -> Path:
        return self.root / "metrics"

    def record_path(self, role: str) -> Path:
        return self.root / "role" / role

    def log_path(self, role: str) -> Path:
        return self.root / "log" / f"{role}.log"

    def reason_path(self, role: str) -> Path:
        return self.root / "reason" / role

    def death_path(self, role: str) -> Path:
        """How the last process of a supervisor ended, if its own supervisor saw it; written when it was seen."""
        return self.root / f"{role}.death"

    def arena_path(self, owner: str, generation: int) -> Path:
        return self.root / "arena" / f"{owner}@{generation}"

    def state_path(self) -> Path:
        return self.root / "state.json"


def boottime_ns() -> int:
    """CLOCK_BOOTTIME: generations come from it, because it grows by itself over crashes and sleep."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (clock ticks since boot), or None if there is no such process (zombies: none).

    Its first thread may be a zombie long before its last: one that was killed with another thread in D state lives on.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" and not _has_living_threads(pid) else int(fields[19])


def _has_living_threads(pid: int) -> bool:
    with contextlib.suppress(OSError):  # the last of it has ended since
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):  # ended between the two looks: ENOENT, or ESRCH from an open file
                stat = Path(f"/proc/{pid}/task/{thread}/stat").read_text()
                if stat.rpartition(")")[2].split()[0] not in "ZX":
                    return True
    return False


def take_name(runtime: Runtime, role: str, generation: int) -> int:
    """Own `role` for the life of this process: flock its record and write it. Returns the fd, to be kept open.

    Raises Gone if another process holds the name: two owners must never be.
    """
    fd = os.open(runtime.record_path(role), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Gone(f"{role}: its name is held by another process: {read_record(runtime, role)}") from None
    record = ProcessRecord(role, os.getpid(), start_ticks(os.getpid()) or 0, generation)
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps(asdict(record)).encode(), 0)
    return fd


def read_record(runtime: Runtime, role: str) -> ProcessRecord | None:
    """The record last written under this name, alive or not; None if there is none or it is torn."""
    try:
        fields = json.loads(runtime.record_path(role).read_text())
        pid, ticks, generation = (int(fields[k]) for k in ("pid", "start_ticks", "generation"))
        return ProcessRecord(str(fields["role"]), pid, ticks, generation, int(fields.get("format", FIRST_FORMAT)))
    except (OSError, *MALFORMED):
        return None


def living(runtime: Runtime, role: str) -> ProcessRecord | None:
    """The record of the process that holds this name now, or None. Says nothing about its health."""
    record = read_record(runtime, role)
    return record if record and start_ticks(record.pid) == record.start_ticks else None


def sign(name_fd: int) -> None:
    """A sign of life: the time of change of one's own record, which can be read whoever else is dead or silent."""
    with contextlib.suppress(OSError):
        os.utime(name_fd)


def last_sign(runtime: Runtime, role: str) -> datetime | None:
    """When the present or last holder of this name gave its last sign of life; it gives one every BEAT_S at least."""
    return modified(runtime.record_path(role))


def modified(path: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError:
        return None


def run_state(pid: int) -> str:
    """The letter of proc_pid_stat(5): T is stopped by a signal, t by a debugger, D in the kernel; empty: none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def recorded_roles(runtime: Runtime) -> list[str]:
    """Names of all roles that ever ran in this runtime directory."""
    with contextlib.suppress(OSError):
        return sorted(entry.name for entry in (runtime.root / "role").iterdir())
    return []


def write_reason(runtime: Runtime, role: str, text: str) -> None:
    """Leave word why this role ends; the watchdog shows it. Atomic, best effort: a full tmpfs must not hide it."""
    path = runtime.reason_path(role)
    with contextlib.suppress(OSError):
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(text.strip().replace("\n", " ")[: limits.LOG_LINE])
        temporary.replace(path)


def take_reason(runtime: Runtime, role: str) -> str | None:
    """Read and remove the reason a role left, if it left one."""
    path = runtime.reason_path(role)
    try:
        text = path.read_text()
        path.unlink()
    except OSError:
        return None
    return text
