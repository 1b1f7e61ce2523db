"""Sleep of a machine and of a bus, as far as a guest whose disk is on 9p can do it: 9p outlives no more.

Documentation/power/basic-pm-debugging.rst (pm_test), Documentation/driver-api/usb/power-management.rst.
"""

import ctypes
import errno
import os
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.kernel_log import KernelLog, ours, refusing
from tests.chaos.pulse import Pulse

POWER = Path("/sys/power")
_FREEZE_MS = 2000  # until the kernel gives up freezing; its own 20 s are only longer
_ATTEMPTS = 10
_FROZEN_S = 0.9 * _FREEZE_MS / 1000  # a task of ours that froze has not run for so long at the least
_LIMIT_S = 20.0  # for a bus to fall asleep
_PIDFD_GETFD = 438  # on every architecture
_FORBID_SUSPEND, _ALLOW_SUSPEND = 0x5521, 0x5522  # USBDEVFS_*, linux/usbdevice_fs.h
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Freeze:
    """What the kernel says of one attempt, and what a task of ours saw of it.

    The kernel gives up (EBUSY) where a task waits for I/O of a process that is frozen already, as it does with FUSE:
    then all others were frozen for _FREEZE_MS, and a person sees that the machine did not go to sleep.
    """

    succeeded: int  # by how much /sys/power/suspend_stats grew
    failed: int  # suspend_stats/failed_freeze
    gap_s: float  # the longest that a thread of ours did not run meanwhile
    refused: tuple[str, ...]  # comm of each task that did not freeze, by the kernel's log
    aborted: bool = False  # something woke the machine up before all tasks were frozen: then none was for long

    def __str__(self) -> str:
        if self.succeeded:
            return f"all tasks, ours did not run for {self.gap_s:.1f} s"
        return f"all but {', '.join(self.refused)}; ours did not run for {self.gap_s:.1f} s"

    def complaint(self) -> str | None:
        """Why it was no sleep, or None if it was one."""
        if self.aborted:
            return f"the machine was woken up before its tasks were frozen, {_ATTEMPTS} times"
        if self.succeeded + self.failed != 1:
            return f"the kernel counts {self.succeeded} freezes and {self.failed} that failed, not one"
        if self.gap_s < _FROZEN_S:
            counted = f"{self.succeeded} freezes, {self.failed} that failed"
            return f"a task of ours ran after {self.gap_s:.3f} s, so it was not frozen ({counted})"
        if awake := ours(self.refused):
            return f"tasks of replug did not freeze: {', '.join(awake)}"
        if self.failed and not self.refused:
            return "the kernel gave up and names no task that did not freeze"
        return None


def freeze_tasks() -> Freeze:
    """Freeze every task, wait 5 s, thaw. RuntimeError if the tasks did not freeze.

    A wake-up (of the bus, say) ends an attempt, as it does on a machine whose lid is being closed: it is tried again.
    """
    (POWER / "pm_freeze_timeout").write_text(str(_FREEZE_MS))
    (POWER / "pm_test").write_text("freezer")
    attempts = (_attempt() for _ in range(_ATTEMPTS))
    freeze = next((one for one in attempts if not one.aborted), Freeze(0, 0, 0.0, (), aborted=True))
    if complaint := freeze.complaint():
        raise RuntimeError(f"freezer: {complaint}")
    return freeze


def _attempt() -> Freeze:
    before = _counts()
    with closing(KernelLog()) as log:
        with closing(Pulse()) as pulse:
            _freeze()
        lines = log.new()
    succeeded, failed = (now - then for now, then in zip(_counts(), before, strict=True))
    aborted = any(line.startswith("Freezing user space processes aborted") for line in lines)
    return Freeze(succeeded, failed, pulse.gap_s, refusing(lines), aborted)


def _freeze() -> None:
    """One attempt: a file object would write again when it is closed. The writer itself is never frozen."""
    state = os.open(POWER / "state", os.O_WRONLY)
    try:
        os.write(state, b"freeze")
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
    finally:
        os.close(state)


def _counts() -> tuple[int, int]:
    stats = POWER / "suspend_stats"
    return int((stats / "success").read_text()), int((stats / "failed_freeze").read_text())


def suspend_bus(holders: Iterable[int], device: Path) -> None:
    """Let the USB device (its place in sysfs) and its root hub fall asleep under their holders, and wake them.

    usbfs keeps a device awake for as long as it is open, so all who may hold it are made to allow the sleep: `usb`, and
    `session` between a death of `usb` and its successor. One that opens it anew has to be made to once more.
    RuntimeError if the hub did not sleep.
    """
    device = device.resolve()  # below its hub; the place on the bus is a link
    hub, pids = device.parent, list(holders)
    before, end = _slept_ms(hub), time.monotonic() + _LIMIT_S
    for place in (device, hub):
        (place / "power/autosuspend_delay_ms").write_text("0")
        (place / "power/control").write_text("auto")
    try:
        while _slept_ms(hub) == before:
            if time.monotonic() > end:
                raise RuntimeError(f"{hub.name} did not fall asleep within {_LIMIT_S:g} s; {_told(device)}")
            _tell(pids, _ALLOW_SUSPEND)
            time.sleep(0.01)  # nothing announces it
    finally:
        _tell(pids, _FORBID_SUSPEND)
        (device / "power/control").write_text("on")


def _slept_ms(place: Path) -> int:
    return int((place / "power/runtime_suspended_time").read_text())


def _told(device: Path) -> str:
    names = ("runtime_status", "runtime_usage", "runtime_active_kids", "control")
    found = {name: (device / "power" / name) for name in names}
    return ", ".join(f"{name} {path.read_text().strip()}" for name, path in found.items() if path.exists())


def _tell(holders: Iterable[int], request: int) -> None:
    """An ioctl upon each descriptor of a USB device. Ours is closed at once: a copy would keep its claim alive."""
    for link in [link for holder in holders for link in _descriptors(holder)]:
        with suppress(FileNotFoundError, ProcessLookupError):  # closed, or dead, meanwhile
            if os.readlink(link).startswith("/dev/bus/usb/"):
                with closing(_Borrowed(os.pidfd_open(int(link.parts[2])), int(link.name))) as usbfs:
                    usbfs.ioctl(request)


def _descriptors(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/fd").iterdir())
    except FileNotFoundError:
        return []


@dataclass
class _Borrowed:
    """Another process's descriptor, as ours (pidfd_getfd(2))."""

    pidfd: int
    number: int

    def __post_init__(self) -> None:
        self.fd = _libc.syscall(_PIDFD_GETFD, self.pidfd, self.number, 0)
        if self.fd < 0:
            error = ctypes.get_errno()
            os.close(self.pidfd)
            gone = error == errno.EBADF
            raise FileNotFoundError(error, "closed meanwhile") if gone else OSError(error, "pidfd_getfd")

    def ioctl(self, request: int) -> None:
        if _libc.ioctl(self.fd, ctypes.c_ulong(request), None) < 0:
            error = ctypes.get_errno()
            if error != errno.ENODEV:  # gone meanwhile
                raise OSError(error, f"usbfs ioctl {request:#x}: {os.strerror(error)}")

    def close(self) -> None:
        os.close(self.fd)
        os.close(self.pidfd)
