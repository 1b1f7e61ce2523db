"""FunctionFS: our descriptors, ep0 with its events and SETUP requests. ABI: linux/usb/functionfs.h, linux/usb/ch9.h.

The interface is one of common.wire.Identity with the four endpoints of smoo: interrupt IN, interrupt OUT, bulk IN, bulk
OUT in this order, for full, high and super speed. Endpoint I/O is in gadget.usb.endpoint. All fds must stay open:
closing the last one unbinds the gadget.
"""

import contextlib
import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from common.errors import Gone
from common.wire import Identity

_DESCRIPTORS_MAGIC_V2: Final = 3
_STRINGS_MAGIC: Final = 2
_HAS_FS, _HAS_HS, _HAS_SS = 1, 2, 4
_INTERFACE = struct.Struct("<BBBBBBBBB")  # usb_interface_descriptor
_ENDPOINT = struct.Struct("<BBBBHB")  # usb_endpoint_descriptor_no_audio
_COMPANION = struct.Struct("<BBBBH")  # usb_ss_ep_comp_descriptor
_EVENT = struct.Struct("<BBHHHB3x")  # usb_functionfs_event: usb_ctrlrequest, type, padding
_ENDPOINT_DESC: Final = 0x80096782  # FUNCTIONFS_ENDPOINT_DESC: _IOR('g', 130, struct usb_endpoint_descriptor)
_MAX_EVENTS: Final = 4  # f_fs keeps at most four
_INTERRUPT, _BULK = 3, 2

# (address, transfer type): the order is the wire's
ENDPOINTS: Final = ((0x81, _INTERRUPT), (0x02, _INTERRUPT), (0x83, _BULK), (0x04, _BULK))


class EventType(IntEnum):
    """enum usb_functionfs_event_type."""

    BIND = 0
    UNBIND = 1
    ENABLE = 2
    DISABLE = 3
    SETUP = 4
    SUSPEND = 5
    RESUME = 6


@dataclass(frozen=True)
class FfsEvent:
    """struct usb_functionfs_event; the last five fields are those of a SETUP (usb_ctrlrequest)."""

    type: EventType
    request_type: int
    request: int
    value: int
    index: int
    length: int


def descriptors(identity: Identity = Identity.SMOO) -> bytes:
    """What is written to ep0 first: the interface for each speed (usb_functionfs_descs_head_v2)."""
    full = _speed(identity, interrupt_packet=64, bulk_packet=64, interval=1)
    high = _speed(identity, interrupt_packet=512, bulk_packet=512, interval=1)
    super_ = _super_speed(identity)
    count = 1 + len(ENDPOINTS)
    body = struct.pack("<III", count, count, count + len(ENDPOINTS)) + full + high + super_
    head = struct.pack("<III", _DESCRIPTORS_MAGIC_V2, 12 + len(body), _HAS_FS | _HAS_HS | _HAS_SS)
    return head + body


def strings() -> bytes:
    """What is written to ep0 second: one string, the interface's name (usb_functionfs_strings_head)."""
    body = struct.pack("<H", 0x409) + b"replug\0"
    return struct.pack("<IIII", _STRINGS_MAGIC, 16 + len(body), 1, 1) + body


def _interface(identity: Identity) -> bytes:
    return _INTERFACE.pack(9, 4, 0, 0, len(ENDPOINTS), *identity.value, 1)


def _speed(identity: Identity, interrupt_packet: int, bulk_packet: int, interval: int) -> bytes:
    data = _interface(identity)
    for address, kind in ENDPOINTS:
        packet, every = (interrupt_packet, interval) if kind == _INTERRUPT else (bulk_packet, 0)
        data += _ENDPOINT.pack(7, 5, address, kind, packet, every)
    return data


def _super_speed(identity: Identity) -> bytes:
    data = _interface(identity)
    for address, kind in ENDPOINTS:
        interrupt = kind == _INTERRUPT
        data += _ENDPOINT.pack(7, 5, address, kind, 1024, 1 if interrupt else 0)
        data += _COMPANION.pack(6, 0x30, 0, 0, 1024 if interrupt else 0)
    return data


def packet_bytes(endpoint: int) -> int:
    """wMaxPacketSize of an endpoint in the present connection, by its descriptor; 0 while it is not enabled."""
    descriptor = bytearray(9)  # with the two fields of audio endpoints, which others leave
    try:
        fcntl.ioctl(endpoint, _ENDPOINT_DESC, descriptor)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.ESHUTDOWN, errno.ENODEV):
            raise
        return 0
    return int.from_bytes(descriptor[4:6], "little")


class Ep0:
    """ep0 of a mounted FunctionFS: written once with descriptors and strings, then events and SETUP requests.

    The kernel's errnos (f_fs.c): EAGAIN no event; ESRCH no SETUP is pending; EIDRM the pending one was cancelled by a
    newer event, which the next read gives; EL2HLT we stalled it, by reading an IN or writing an OUT request; EBADFD
    FunctionFS is not active (any more); ESHUTDOWN the link went down in the data stage.
    """

    def __init__(self, fd: int) -> None:
        """Take over one that is open; the first act then is `abandon`."""
        self.fd = fd

    @staticmethod
    def open(mount_point: Path, identity: Identity = Identity.SMOO) -> "Ep0":
        """Open it, and say what we are: only then do the other endpoints exist."""
        fd = os.open(mount_point / "ep0", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        os.write(fd, descriptors(identity))
        os.write(fd, strings())
        return Ep0(fd)

    def events(self) -> list[FfsEvent]:
        """Events that are there; empty if none. A pending SETUP comes last, and is answered before the next read.

        EIDRM: a newer event cancelled the SETUP we had; EL2HLT: one whose reply had failed is stalled by this read. The
        next read gives events again.
        """
        try:
            data = os.read(self.fd, _EVENT.size * _MAX_EVENTS)
        except BlockingIOError:
            return []
        except OSError as error:
            if error.errno in (errno.EIDRM, errno.EL2HLT):
                return self.events()
            raise Gone(f"ep0: {error.strerror}: FunctionFS has been taken away") from None
        return [
            FfsEvent(EventType(kind), request_type, request, value, index, length)
            for request_type, request, value, index, length, kind in _EVENT.iter_unpack(data)
        ]

    def abandon(self) -> None:
        """Let go of a SETUP that a dead predecessor on the same fd left; the first act of a successor.

        A read instead would return the data stage of an unfinished OUT request, and acknowledge it.
        """
        try:
            os.write(self.fd, b"")  # 0: a pending IN was answered, with nothing
        except OSError as error:
            if error.errno not in (errno.ESRCH, errno.EL2HLT, errno.EIDRM):
                raise

    def reply(self, event: FfsEvent, data: bytes) -> None:
        """Data stage of an IN request, cut to what the host asked for. A host that has gone on is no error (EIDRM)."""
        with contextlib.suppress(OSError):
            os.write(self.fd, data[: event.length])

    def read(self, event: FfsEvent) -> bytes:
        """Data stage of an OUT request; reading it acknowledges it. Empty if the host has gone on.

        Blocks until the host has sent it, has given up, or the link is down.
        """
        if event.length == 0:
            with contextlib.suppress(OSError):
                os.read(self.fd, 0)
            return b""
        try:
            return os.read(self.fd, event.length)
        except OSError:
            return b""

    def stall(self, event: FfsEvent) -> None:
        """Refuse a request: FunctionFS stalls ep0 when it is read or written in the wrong direction (EL2HLT)."""
        with contextlib.suppress(OSError):
            if event.request_type & 0x80:
                os.read(self.fd, 0)
            else:
                os.write(self.fd, b"")
