"""usbfs: one open device node, its URBs and its requests. ABI: linux/usbdevice_fs.h, drivers/usb/core/devio.c.

Not libusb for this: an interface belongs to the descriptor that claimed it, and URBs on our own are driven from the
role's loop without a thread. poll(2) on `fd` says POLLOUT when an URB can be reaped, POLLERR and POLLHUP when the
device is gone.

usbfs has buffers of its own: the bytes of an OUT URB are copied at `submit`, those of an IN URB at `reap`. So one
buffer may serve many URBs, and nothing lands in our memory behind our back, least of all after we were killed.
"""

import ctypes
import errno
import os
import struct
from enum import IntEnum
from typing import Final, NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
_ioctl = _libc.ioctl

SETUP_BYTES: Final = 8  # struct usb_ctrlrequest, before the data of a control URB


class UrbKind(IntEnum):
    """USBDEVFS_URB_TYPE_*."""

    INTERRUPT = 1
    CONTROL = 2
    BULK = 3


class _Urb(ctypes.Structure):
    """struct usbdevfs_urb."""

    _fields_ = (
        ("type", ctypes.c_ubyte),
        ("endpoint", ctypes.c_ubyte),
        ("status", ctypes.c_int),
        ("flags", ctypes.c_uint),
        ("buffer", ctypes.c_void_p),
        ("buffer_length", ctypes.c_int),
        ("actual_length", ctypes.c_int),
        ("start_frame", ctypes.c_int),
        ("number_of_packets", ctypes.c_int),
        ("error_count", ctypes.c_int),
        ("signr", ctypes.c_uint),
        ("usercontext", ctypes.c_void_p),
    )


_WHAT: Final = struct.Struct("@BBiIPii")  # its fields up to actual_length, laid out as C does


class _Control(ctypes.Structure):
    """struct usbdevfs_ctrltransfer."""

    _fields_ = (
        ("bRequestType", ctypes.c_ubyte),
        ("bRequest", ctypes.c_ubyte),
        ("wValue", ctypes.c_uint16),
        ("wIndex", ctypes.c_uint16),
        ("wLength", ctypes.c_uint16),
        ("timeout", ctypes.c_uint32),  # ms
        ("data", ctypes.c_void_p),
    )


class _Bulk(ctypes.Structure):
    """struct usbdevfs_bulktransfer."""

    _fields_ = (
        ("ep", ctypes.c_uint),
        ("len", ctypes.c_uint),
        ("timeout", ctypes.c_uint),  # ms; 0 is none
        ("data", ctypes.c_void_p),
    )


def _io(direction: int, number: int, size: int) -> int:
    """_IOC of asm-generic/ioctl.h with type 'U'."""
    return direction << 30 | size << 16 | ord("U") << 8 | number


_NONE, _WRITE, _READ = 0, 1, 2
_POINTER: Final = ctypes.sizeof(ctypes.c_void_p)
_CONTROL: Final = _io(_READ | _WRITE, 0, ctypes.sizeof(_Control))
_BULK: Final = _io(_READ | _WRITE, 2, ctypes.sizeof(_Bulk))
_SETINTERFACE: Final = _io(_READ, 4, 8)
_SETCONFIGURATION: Final = _io(_READ, 5, 4)
_SUBMITURB: Final = _io(_READ, 10, ctypes.sizeof(_Urb))
_DISCARDURB: Final = _io(_NONE, 11, 0)
_REAPURBNDELAY: Final = _io(_WRITE, 13, _POINTER)
_CLAIMINTERFACE: Final = _io(_READ, 15, 4)
_RELEASEINTERFACE: Final = _io(_READ, 16, 4)
_RESET: Final = _io(_NONE, 20, 0)


class Reaped(NamedTuple):
    """An URB that has ended: the number it was submitted with, 0 or an errno, and how many bytes moved."""

    number: int
    error: int
    size_bytes: int


class UsbFs:
    """One open /dev/bus/usb/BBB/DDD. Methods raise OSError with the kernel's errno; ENODEV: the device is gone."""

    def __init__(self, bus: int, address: int) -> None:
        """ENOENT if there is no such device, EACCES without permission."""
        self.fd = os.open(f"/dev/bus/usb/{bus:03}/{address:03}", os.O_RDWR | os.O_CLOEXEC)
        self._urbs: dict[int, tuple[int, _Urb]] = {}  # in the kernel's hands, with their numbers, by address
        self._spare: list[tuple[int, _Urb]] = []  # with their addresses
        self._next = 1
        self._reaped = ctypes.c_void_p()
        self._reaped_at = ctypes.addressof(self._reaped)

    @property
    def outstanding(self) -> int:
        """URBs submitted and not reaped."""
        return len(self._urbs)

    # -- URBs ----------------------------------------------------------------------------------------------------
    def submit(self, kind: UrbKind, endpoint: int, address: int, size_bytes: int) -> int:
        """Queue one URB; returns its number. The buffer stays where it is until it was reaped.

        EPIPE if the endpoint is halted (xHCI), ENOENT if the interface has no such endpoint, ENOMEM past usbfs's memory
        limit (usbfs_memory_mb).
        """
        if self._spare:
            where, urb = self._spare.pop()
        else:
            urb = _Urb()
            where = ctypes.addressof(urb)
        number, self._next = self._next, self._next + 1
        _WHAT.pack_into(urb, 0, kind, endpoint, 0, 0, address, size_bytes, 0)
        self._ioctl(_SUBMITURB, where)
        self._urbs[where] = (number, urb)
        return number

    def reap(self) -> Reaped | None:
        """One URB that has ended; None if none has. ENODEV: the device is gone, and all of its URBs were reaped."""
        if _ioctl(self.fd, _REAPURBNDELAY, self._reaped_at) < 0:
            code = ctypes.get_errno()
            if code == errno.EAGAIN:  # each wake-up ends here: no exception for that
                return None
            raise OSError(code, os.strerror(code))
        where = self._reaped.value or 0
        number, urb = self._urbs.pop(where)
        self._spare.append((where, urb))
        return Reaped(number, -urb.status, urb.actual_length)

    def discard(self, number: int) -> None:
        """Take an URB back: it ends with ENOENT, if it has not ended by itself, and is to be reaped all the same."""
        for where, (its_number, _) in self._urbs.items():
            if its_number == number:
                try:
                    self._ioctl(_DISCARDURB, where)
                except OSError as error:
                    if error.errno not in (errno.EINVAL, errno.ENODEV):  # EINVAL: it has ended
                        raise

    # -- requests: these block, for seconds if the device does not answer -----------------------------------------
    def control(self, request_type: int, request: int, index: int, data: bytes | int, timeout_ms: int) -> bytes:
        """A control request; `data` is what is sent, or how many bytes are asked for. Returns what came.

        EPIPE if the device stalls it, ETIMEDOUT.
        """
        buffer = ctypes.create_string_buffer(data, len(data)) if isinstance(data, bytes) else (ctypes.c_char * data)()
        size = len(buffer)
        transfer = _Control(request_type, request, 0, index, size, timeout_ms, ctypes.addressof(buffer))
        count = self._ioctl(_CONTROL, ctypes.addressof(transfer))
        return buffer.raw[:count]

    def transfer(self, endpoint: int, address: int, size_bytes: int, timeout_ms: int = 0) -> int:
        """One bulk or interrupt transfer, to its end; returns how many bytes moved."""
        bulk = _Bulk(endpoint, size_bytes, timeout_ms, address)
        return self._ioctl(_BULK, ctypes.addressof(bulk))

    def claim(self, interface: int) -> None:
        """EBUSY if another process or a kernel driver has it."""
        self._number(_CLAIMINTERFACE, interface)

    def release(self, interface: int) -> None:
        self._number(_RELEASEINTERFACE, interface)

    def set_interface(self, interface: int, alternate: int) -> None:
        """SET_INTERFACE: ends all URBs of the interface, clears toggles and halts, raises ENABLE on the gadget."""
        pair = (ctypes.c_uint * 2)(interface, alternate)
        self._ioctl(_SETINTERFACE, ctypes.addressof(pair))

    def set_configuration(self, value: int) -> None:
        """EBUSY if an interface is claimed."""
        self._number(_SETCONFIGURATION, value)

    def reset(self) -> None:
        """USB port reset. ENODEV if the device comes back as another one. Claimed interfaces are claimed no more."""
        self._ioctl(_RESET, 0)

    def close(self) -> None:
        """Ends every URB; none is reaped any more."""
        os.close(self.fd)
        self._urbs.clear()

    # -- the call ------------------------------------------------------------------------------------------------
    def _number(self, request: int, value: int) -> None:
        self._ioctl(request, ctypes.addressof(ctypes.c_uint(value)))

    def _ioctl(self, request: int, address: int) -> int:
        result: int = _ioctl(self.fd, request, address)
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result
