"""A USB device in the hands of a test: blocking transfers by usbfs, in as many threads as the test likes.

libusb is not used: closing a handle under another thread's transfer crashes the whole test process.
"""

import ctypes
import errno
from dataclasses import dataclass
from pathlib import Path

from host.usb.usbfs import UsbFs


@dataclass(frozen=True)
class RawEndpoint:
    """One endpoint of the claimed interface, with its descriptor's fields."""

    device: "RawDevice"
    address: int
    attributes: int
    max_packet: int

    def read(self, size_bytes: int, timeout_ms: int) -> bytes:
        """One transfer. OSError with its errno; 0 ms is no limit."""
        buffer = (ctypes.c_char * size_bytes)()
        count = self.device.usbfs.transfer(self.address, ctypes.addressof(buffer), size_bytes, timeout_ms)
        return buffer.raw[:count]

    def write(self, data: bytes, timeout_ms: int) -> int:
        buffer = ctypes.create_string_buffer(data, len(data))
        return self.device.usbfs.transfer(self.address, ctypes.addressof(buffer), len(data), timeout_ms)


class RawDevice:
    """The device at a sysfs place, its first interface claimed."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.usbfs = UsbFs(int((place / "busnum").read_text()), int((place / "devnum").read_text()))
        descriptors = (place / "descriptors").read_bytes()
        self.endpoints: list[RawEndpoint] = []
        while descriptors:
            length, kind = descriptors[0], descriptors[1]
            if kind == 4:
                self.triple = (descriptors[5], descriptors[6], descriptors[7])
            elif kind == 5:
                packet = int.from_bytes(descriptors[4:6], "little")
                self.endpoints.append(RawEndpoint(self, descriptors[2], descriptors[3], packet))
            descriptors = descriptors[length:]
        self.usbfs.claim(0)

    @property
    def serial_number(self) -> str:
        return (self.place / "serial").read_text().strip()

    def control(self, request_type: int, request: int, data: bytes | int, timeout_ms: int = 5000) -> bytes:
        """Returns what came; OSError(EPIPE) for a stall."""
        return self.usbfs.control(request_type, request, 0, data, timeout_ms)

    def set_interface(self) -> None:
        self.usbfs.set_interface(0, 0)

    def reset(self) -> None:
        """All transfers of other threads end; the interface is claimed again. A device that has gone is no error."""
        try:
            self.usbfs.reset()
            self.usbfs.claim(0)
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.EBUSY):
                raise

    def close(self) -> None:
        self.usbfs.close()
