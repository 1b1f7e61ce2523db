"""Somebody else who uses our address space, so that our death does not end it: a way around a deadlock in f_fs.

Linux 6.12's f_fs copies what a read has brought in a worker of one ordered queue, and keeps the reader's memory for the
length of the copy (ffs_user_copy_worker: mmget_not_zero ... mmput). If the reader dies meanwhile, that mmput is the
last: the worker itself runs exit_aio and waits there for the very transfer it is about to end. No transfer of the
gadget ends any more, the controller cannot be unbound, until a reboot.

So at its birth `usb` makes a process that shares its memory and does nothing (clone(CLONE_VM) of libc's pause). It is
the last to use that memory then, and a successor (gadget.usb.predecessor) or the retirement chooses when it ends: while
nothing is being copied. It has no role, none of FunctionFS's descriptors, and takes no memory of its own.
"""

import contextlib
import ctypes
import mmap
import os
import select
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bus import fds as fdsocket
from bus.runtime import Runtime, start_ticks
from common.errors import Gone

COMM: Final = "ffs-mm"  # what ps shows
_CLONE_VM, _CLONE_PARENT, _CLONE_PARENT_SETTID = 0x100, 0x8000, 0x100000  # linux/sched.h
_STACK_BYTES: Final = 64 * 1024
_PID_BYTES: Final = 4
_DEATH_S: Final = 5.0  # it only sleeps: longer means that the kernel does not let go of its transfers

_libc = ctypes.CDLL(None, use_errno=True)
_libc.clone.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_stacks: list[mmap.mmap] = []  # in use for as long as the address space is


@dataclass(frozen=True)
class Hold:
    """One such process, by the record of it. A pid alone may be reused: it is also known by its name."""

    record: Path
    pid: int

    def end(self) -> None:
        """Kill it, wait until it is dead, forget it. Raises Gone if the kernel keeps it."""
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(self.pid)
            try:
                if _is_one(self.pid):  # looked at again now that the pid cannot become another's
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    _await_death(pidfd, self.pid)
            finally:
                os.close(pidfd)
        self.record.unlink(missing_ok=True)


def hold(runtime: Runtime, role: str, generation: int, fds: dict[str, int]) -> dict[str, int]:
    """Make ours. Called before this process has a thread or a descriptor of its own; returns `fds` under new numbers.

    The kernel itself writes the pid into the record, before the process first runs: none is ever made unrecorded. `fds`
    are in flight to ourselves meanwhile, so that it gets no copy of them: the last FunctionFS descriptor unbinds.
    """
    path = _records(runtime) / f"{role}.mm@{generation}"
    with _shared_word(path) as word, _in_flight(fds) as landed:
        name, mask = Path("/proc/self/comm"), signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        ours = name.read_text()
        name.write_text(COMM)  # inherited; it has all signals blocked, so only SIGKILL and SIGSTOP reach it
        try:
            _clone_of_pause(word)
        finally:
            name.write_text(ours)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return landed


def left(runtime: Runtime, role: str, but: int = 0) -> list[Hold]:
    """Those that predecessors left; `but`: not the one of this generation. Records of dead ones are forgotten."""
    holds = []
    for path in sorted(_records(runtime).glob(f"{role}.mm@*")):
        if path.name == f"{role}.mm@{but}":
            continue
        pid = _pid_in(path)
        if pid and _is_one(pid):
            holds.append(Hold(path, pid))
        else:
            path.unlink(missing_ok=True)
    return holds


def found(runtime: Runtime, role: str, but: int = 0) -> list[Hold]:
    """Also those whose records are lost with the runtime directory: a look at every process, for when nobody waits.

    Their command line is that of the spawner, which names the directory.
    """
    holds = left(runtime, role, but)
    known = {hold.pid for hold in holds} | {_pid_in(_records(runtime) / f"{role}.mm@{but}")}
    root = os.fsencode(runtime.root)
    for entry in Path("/proc").glob("[0-9]*"):
        pid = int(entry.name)
        with contextlib.suppress(OSError):
            if _is_one(pid) and pid not in known and root in (entry / "cmdline").read_bytes().split(b"\0"):
                holds.append(Hold(_records(runtime) / f"{role}.mm@lost", pid))
    return holds


def _records(runtime: Runtime) -> Path:
    return runtime.root / "mm"


def _pid_in(record: Path) -> int:
    """0 for one that is empty or gone."""
    try:
        return int.from_bytes(record.read_bytes()[:_PID_BYTES], "little")
    except OSError:
        return 0


def _is_one(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == COMM and start_ticks(pid) is not None
    except OSError:
        return False


def _await_death(pidfd: int, pid: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(_DEATH_S * 1000):
        raise Gone(f"process {pid}, which holds the memory of a dead usb, does not end: its transfers do not")


@contextlib.contextmanager
def _shared_word(path: Path) -> Iterator[int]:
    """Address of the first word of a new file, present in memory and ours to be written by the kernel."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, _PID_BYTES)
        with mmap.mmap(fd, _PID_BYTES) as shared:
            shared[:] = bytes(_PID_BYTES)
            word = ctypes.c_int.from_buffer(shared)
            yield ctypes.addressof(word)
            del word
    finally:
        os.close(fd)


@contextlib.contextmanager
def _in_flight(fds: dict[str, int]) -> Iterator[dict[str, int]]:
    """Send `fds` to ourselves; the dict that is yielded has them, under new numbers, after the block."""
    landed: dict[str, int] = {}
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        fdsocket.send(theirs, {}, tuple(fds.values()))
        for fd in fds.values():
            os.close(fd)
        yield landed
        landed.update(zip(fds, fdsocket.receive(ours)[1], strict=True))


def _clone_of_pause(parent_tid: int) -> None:
    """A process on a stack of its own in our memory, in libc's pause from its first instruction. Our parent is its."""
    stack = mmap.mmap(-1, _STACK_BYTES)
    _stacks.append(stack)
    top = ctypes.addressof(ctypes.c_char.from_buffer(stack)) + _STACK_BYTES
    flags = _CLONE_VM | _CLONE_PARENT | _CLONE_PARENT_SETTID | signal.SIGCHLD
    pause = ctypes.cast(_libc.pause, ctypes.c_void_p)
    if _libc.clone(pause, top - top % 16, flags, None, parent_tid) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"clone: {os.strerror(code)}")
