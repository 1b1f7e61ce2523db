"""The binary interface of usbmon (drivers/usb/mon/mon_bin.c): /dev/usbmonN, N a bus or 0 for all of them.

A thin typed wrapper: open, take one event, ask what was dropped. It needs no more than the right to read the device
node, which is root's. Called by tools.capture.record.
"""

import ctypes
import errno
import fcntl
import os
import struct
from typing import Final

from common import limits
from common.errors import Exit, Refused
from tools.capture.pcap import EVENT_BYTES, Event

_MAGIC: Final = 0x92  # MON_IOC_MAGIC
_GET = struct.Struct("@PPN")  # struct mon_bin_get: header, data, room for data
_STATS = struct.Struct("@II")  # struct mon_bin_stats: queued, dropped since it was asked last
_STATS_READ: Final = 2 << 30 | _STATS.size << 16 | _MAGIC << 8 | 3  # MON_IOCG_STATS, _IOR
_RING_SIZE: Final = _MAGIC << 8 | 4  # MON_IOCT_RING_SIZE, _IO
_GETX: Final = 1 << 30 | _GET.size << 16 | _MAGIC << 8 | 10  # MON_IOCX_GETX, _IOW: the header of 64 bytes


class Usbmon:
    """One reader of a bus. What happens before it is made, it does not see."""

    def __init__(self, bus: int) -> None:
        self.fd = _opened(f"/dev/usbmon{bus}", bus)
        # the kernel copies a fifth of the ring of each transfer at most: with its own 300 KiB, not a whole frame
        fcntl.ioctl(self.fd, _RING_SIZE, limits.CAPTURE_RING_BYTES)
        self._head = ctypes.create_string_buffer(EVENT_BYTES)
        self._data = ctypes.create_string_buffer(limits.CAPTURE_RING_BYTES)
        addresses = (ctypes.addressof(self._head), ctypes.addressof(self._data), len(self._data))
        self._where = _GET.pack(*addresses)

    def take(self) -> tuple[Event, bytes] | None:
        """The next event and its data; None if there is none just now (wait on `fd`)."""
        try:
            fcntl.ioctl(self.fd, _GETX, self._where)
        except BlockingIOError:
            return None
        event = Event.decode(self._head.raw)
        return event, ctypes.string_at(self._data, event.captured)

    def stats(self) -> tuple[int, int]:
        """Events that wait in the ring, and those that found it full since this was asked last."""
        answer = bytearray(_STATS.size)
        fcntl.ioctl(self.fd, _STATS_READ, answer)
        queued, dropped = _STATS.unpack(answer)
        return queued, dropped

    def close(self) -> None:
        os.close(self.fd)


def _opened(path: str, bus: int) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise Refused(f"{path}: {error.strerror}: all traffic of the bus is seen there: run it as root",
                          Exit.LACKING) from None  # fmt: skip
        if error.errno not in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
            raise
        if bus and os.path.exists("/dev/usbmon0"):
            raise Refused(f"{path}: there is no bus {bus}: see /sys/bus/usb/devices/usb*/busnum") from None
        cure = "load it with 'modprobe usbmon' as root"
        raise Refused(f"{path}: not there: the kernel's module usbmon is not loaded: {cure}", Exit.LACKING) from None
