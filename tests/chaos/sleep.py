"""Sleep of a machine and of a bus, as far as a guest whose disk is on 9p can do it: 9p outlives no more.

Documentation/power/basic-pm-debugging.rst (pm_test), Documentation/driver-api/usb/power-management.rst.
"""

import ctypes
import errno
import os
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

POWER = Path("/sys/power")
_FREEZE_MS = 2000  # until the kernel gives up freezing; its own 20 s are only longer
_LIMIT_S = 20.0  # for a bus to fall asleep
_PIDFD_GETFD = 438  # on every architecture
_FORBID_SUSPEND, _ALLOW_SUSPEND = 0x5521, 0x5522  # USBDEVFS_*, linux/usbdevice_fs.h
_libc = ctypes.CDLL(None, use_errno=True)


def freeze_tasks() -> None:
    """Freeze every task, wait 5 s, thaw.

    The kernel gives up (EBUSY) where a task waits for I/O of a process that is frozen already, as it does with FUSE:
    then all were frozen for _FREEZE_MS, and a person sees that the machine did not go to sleep.
    """
    (POWER / "pm_freeze_timeout").write_text(str(_FREEZE_MS))
    (POWER / "pm_test").write_text("freezer")
    try:
        (POWER / "state").write_text("freeze")
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise


def suspend_bus(holder: int, device: Path) -> None:
    """Let the USB device (its place in sysfs) and its root hub fall asleep under their holder, and wake them.

    usbfs keeps a device awake for as long as it is open, so its holder's descriptor is borrowed to allow the sleep.
    """
    device = device.resolve()  # below its hub; the place on the bus is a link
    hub = device.parent
    nodes = [node for node in map(_link_target, range(3, 256), [holder] * 253) if node is not None]
    [number] = [fd for fd, target in nodes if target.startswith("/dev/bus/usb/")]
    pidfd = os.pidfd_open(holder)
    with closing(_Borrowed(pidfd, number)) as usbfs:
        for place in (device, hub):
            (place / "power/autosuspend_delay_ms").write_text("0")
            (place / "power/control").write_text("auto")
        usbfs.ioctl(_ALLOW_SUSPEND)
        try:
            end = time.monotonic() + _LIMIT_S
            while (hub / "power/runtime_status").read_text().strip() != "suspended":
                if time.monotonic() > end:
                    raise RuntimeError(f"{hub.name} did not fall asleep within {_LIMIT_S:g} s")
                time.sleep(0.005)
        finally:
            usbfs.ioctl(_FORBID_SUSPEND)
            (device / "power/control").write_text("on")


def _link_target(fd: int, pid: int) -> tuple[int, str] | None:
    try:
        return fd, os.readlink(f"/proc/{pid}/fd/{fd}")
    except FileNotFoundError:
        return None


@dataclass
class _Borrowed:
    """Another process's descriptor, as ours (pidfd_getfd(2))."""

    pidfd: int
    number: int

    def __post_init__(self) -> None:
        self.fd = _libc.syscall(_PIDFD_GETFD, self.pidfd, self.number, 0)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")

    def ioctl(self, request: int) -> None:
        if _libc.ioctl(self.fd, ctypes.c_ulong(request), None) < 0:
            error = ctypes.get_errno()
            if error != errno.ENODEV:  # gone meanwhile
                raise OSError(error, f"usbfs ioctl {request:#x}: {os.strerror(error)}")

    def close(self) -> None:
        os.close(self.fd)
        os.close(self.pidfd)
