"""What both data planes (plane_v0, plane_v1) are to the attachment, and who is told what arrives.

A plane knows streams, buffers and the shape of transfers; nothing of exports and sources, and nothing of the link.
WireError, raised in one of these calls, means that the gadget broke the protocol.
"""

from typing import Protocol

from common.wire_v1 import Record
from host.usb.core import Answer


class Receiver(Protocol):
    """Told by a plane, from the loop only."""

    def message(self, data: bytes) -> None:
        """v0: a Request."""

    def request(self, record: Record) -> int | None:
        """v1: a Request. Returns its sequence if a payload follows (with its first fragment), else None."""

    def payload_of(self, sequence: int) -> int:
        """v1: how many bytes that payload has."""

    def taken(self, sequence: int) -> None:
        """The payload of a write is where `Plane.take` said."""

    def sent(self, sequence: int) -> None:
        """The payload of a read is not needed any more where it lies."""


class Plane(Protocol):
    """The data of one epoch."""

    def begin(self) -> None:
        """Queue reads for what the gadget will send."""

    def answer(self, answer: Answer, address: int) -> None:
        """Send a Response, and its payload, which lies at `address`."""

    def take(self, sequence: int, address: int | None, size_bytes: int) -> None:
        """Put the payload of a write at `address`, or throw it away if that is None; then `Receiver.taken`."""

    def pump(self) -> None:
        """Send what was answered."""
