"""A pcap file of USB transfers as bytes: its head, and a record for each event of usbmon. Pure.

Link type 220 (LINKTYPE_USB_LINUX_MMAPPED): a record is the kernel's header of 64 bytes as usbmon tells it, then data.
Format: draft-ietf-opsawg-pcap; the header: Documentation/usb/usbmon.rst (struct usbmon_packet, the 64-byte form).
"""

import struct
from dataclasses import dataclass, replace
from typing import Final

from common import limits

LINK_TYPE: Final = 220
_FILE = struct.Struct("=IHHiIII")  # magic, version 2.4, zone, sigfigs, snaplen, link type; the writer's byte order
_RECORD = struct.Struct("=IIII")  # seconds, microseconds, bytes here, bytes there were
# id, type, transfer type, endpoint, device, bus, no setup, no data, sec, usec, status, length, captured, setup,
# interval, start frame, transfer flags, descriptors
_EVENT = struct.Struct("=QBBBBHbbqiiII8siiII")
EVENT_BYTES: Final = _EVENT.size
FILE_BYTES: Final = _FILE.size
RECORD_BYTES: Final = _RECORD.size


@dataclass(frozen=True, slots=True)
class Event:
    """One event of one URB, fields as the kernel names them. `kind`: S submitted, C completed, E refused by it."""

    urb: int
    kind: bytes
    transfer: int  # 0 isochronous, 1 interrupt, 2 control, 3 bulk
    endpoint: int  # with 0x80: IN
    device: int
    bus: int
    seconds: int
    microseconds: int
    status: int
    length: int  # asked for (S) or moved (C)
    captured: int  # bytes of data that follow here
    setup: bytes | None = None  # of a control transfer's submission
    no_data: int = 0  # why there are none: b"<" or b">" the other direction, b"Z" not to be had
    interval: int = 0
    start_frame: int = 0
    flags: int = 0
    descriptors: int = 0

    @staticmethod
    def decode(head: bytes) -> "Event":
        fields = _EVENT.unpack(head)
        urb, kind, transfer, endpoint, device, bus, no_setup, no_data, seconds, microseconds = fields[:10]
        status, length, captured, setup = fields[10:14]
        return Event(
            urb, bytes([kind]), transfer, endpoint, device, bus, seconds, microseconds, status, length, captured,
            None if no_setup else setup, no_data, *fields[14:],
        )  # fmt: skip

    def encode(self) -> bytes:
        no_setup = 0 if self.setup is not None else ord("-")
        times = (self.seconds, self.microseconds, self.status, self.length, self.captured)
        tail = (self.setup or bytes(8), self.interval, self.start_frame, self.flags, self.descriptors)
        where = (self.transfer, self.endpoint, self.device, self.bus)
        return _EVENT.pack(self.urb, self.kind[0], *where, no_setup, self.no_data, *times, *tail)


def file_head() -> bytes:
    return _FILE.pack(0xA1B2C3D4, 2, 4, 0, 0, EVENT_BYTES + limits.CAPTURE_RING_BYTES, LINK_TYPE)


def record(event: Event, data: bytes) -> bytes:
    """What stands in the file for `event`, whose data, as far as the kernel copied them, are `data`."""
    here = EVENT_BYTES + len(data)
    there = here if event.no_data else max(here, EVENT_BYTES + event.length)  # `captured` is less when it was cut
    head = _RECORD.pack(event.seconds & 0xFFFFFFFF, event.microseconds, here, there)
    return head + replace(event, captured=len(data)).encode() + data
