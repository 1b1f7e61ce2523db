"""What a process of ours does to itself right after it is made: name, memory, signals, descriptors, output.

Thin wrappers over prctl(2), mlockall(2) and /proc/self. Called by the spawner for itself and in each child.
"""

import contextlib
import ctypes
import faulthandler
import os
import random
import resource
import signal
from collections.abc import Collection
from pathlib import Path

from common import limits, syscalls

PR_SET_NAME = 15  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36
PR_SET_IO_FLUSHER = 57
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4  # asm-generic/mman.h
CAP_IPC_LOCK = 14  # linux/capability.h
_ARG_START = 48 - 3  # proc(5): field 48, of those behind the name
COMM_BYTES = 15  # TASK_COMM_LEN without its NUL

_libc = ctypes.CDLL(None, use_errno=True)
_prctl = _libc.prctl
_prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)


def set_comm(role: str) -> None:
    """What ps and top show: `replug:usb`."""
    name = ctypes.create_string_buffer(f"replug:{role}".encode()[:COMM_BYTES])
    _prctl(PR_SET_NAME, ctypes.addressof(name), 0, 0, 0)


def become_subreaper() -> bool:
    """Orphans below us become our children. Not inherited."""
    return bool(_prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def serve_block_devices() -> list[str]:
    """Set what children inherit: spared by the OOM killer, first at the processor, I/O flusher, no core dumps.

    Returns refusals.
    """
    refused = _go_first()
    try:
        Path("/proc/self/oom_score_adj").write_text("-1000")
    except OSError as error:
        refused.append(f"oom_score_adj: {error.strerror}")
    if _prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) != 0:
        refused.append(f"PR_SET_IO_FLUSHER: {os.strerror(ctypes.get_errno())}")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would be written to the disk we may be serving
    return refused


def _go_first() -> list[str]:
    """A successor must not wait for the processor behind those who wait for its disk.

    Twice, because a niceness counts only within its autogroup (sched(7)), which here is the spawner's session.
    Refused (EPERM) without CAP_SYS_NICE; a kernel without autogroups has no such file.
    """
    try:
        if os.getpriority(os.PRIO_PROCESS, 0) > limits.NICE:
            os.setpriority(os.PRIO_PROCESS, 0, limits.NICE)
        if (group := Path("/proc/self/autogroup")).exists():
            group.write_text(str(limits.NICE))
    except OSError as error:
        return [f"niceness {limits.NICE}: {error.strerror}"]
    return []


def spare_at_shutdown() -> None:
    """Have systemd's last killing leave us alone (https://systemd.io/ROOT_STORAGE_DAEMONS): `@` begins our argv[0].

    Written over its first character, where /proc/PID/cmdline reads it; forks inherit it. An exec with such a name
    would leave Python without its own path.
    """
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    ctypes.memset(int(fields[_ARG_START]), ord("@"), 1)


def lock_memory(on_fault: bool) -> str | None:
    """mlockall, which is not inherited: each process does it. Returns why not, or None.

    `on_fault` locks pages as they are touched, so that a fork keeps sharing its parent's. Under a finite
    RLIMIT_MEMLOCK nothing is locked: MCL_FUTURE would make a later allocation fail, and slow is better than dead.
    """
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY and not _may_lock():
        return "RLIMIT_MEMLOCK is finite"
    try:
        syscalls.syscall("mlockall", MCL_CURRENT | MCL_FUTURE | (MCL_ONFAULT if on_fault else 0))
    except (OSError, NotImplementedError) as error:
        return str(error)
    return None


def _may_lock() -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> CAP_IPC_LOCK & 1)
    return False


def close_all_but(keep: Collection[int]) -> None:
    """A fork ignores close-on-exec: a flock, ring or socket of the parent would live on in us."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in keep:
            with contextlib.suppress(OSError):  # the listing's own descriptor is closed by now
                os.close(int(name))


def reset_signals() -> None:
    """Default actions, nothing blocked, no wake-up descriptor: the parent's are not ours."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE):
            with contextlib.suppress(OSError, ValueError):  # the C library keeps two for itself
                signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def redirect_output(path: Path | None) -> None:
    """stdin from /dev/null; output there too, or to `path`, where an interpreter's fault leaves its trace."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    out = null
    if path is not None:
        with contextlib.suppress(OSError):
            out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            if os.fstat(out).st_size > limits.LOG_BYTES:
                os.ftruncate(out, 0)
    os.dup2(null, 0)
    for number in (1, 2):
        os.dup2(out, number)
    for fd in {null, out} - {0, 1, 2}:
        os.close(fd)


def begin_child(comm: str, keep: Collection[int], output: Path | None) -> None:
    """All of the above, in the order a freshly forked child needs it."""
    reset_signals()
    close_all_but(keep)
    redirect_output(output)
    if output is not None:
        faulthandler.enable(file=2)
    set_comm(comm)
    random.seed()
    lock_memory(on_fault=True)
