"""What both data planes (plane_v0, plane_v1) are to the transport, and who is told what arrives.

A plane knows endpoints, buffers and the shape of transfers; nothing of exports, and nothing of the link.
"""

from dataclasses import dataclass
from typing import Protocol

from common.errors import ReplugError
from common.wire_v1 import Record
from gadget.usb.core import Pending, Send
from gadget.usb.endpoint import Endpoint, Transfer


class BrokenLink(ReplugError):
    """A transfer that ended as none may while the link is up, and not by the host's doing: start the link over."""


class Receiver(Protocol):
    """Told by a plane, from the loop only. Any of them may raise WireError: the host broke the protocol."""

    def message(self, data: bytes) -> None:
        """v0: a Response."""

    def filled(self, pending: Pending, epoch: int) -> None:
        """v0: a read payload is in its slot."""

    def left(self, pending: Pending, epoch: int) -> None:
        """A write payload has left its slot."""

    def records(self, placed: list[tuple[Record, int]], frame: memoryview) -> None:
        """v1: Responses and fragments of their data, and where in `frame` those lie until this returns."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The four of the wire, named by what v0 sends over them. Seen from the gadget, as FunctionFS opens them."""

    requests: Endpoint  # interrupt IN
    responses: Endpoint  # interrupt OUT
    payloads_in: Endpoint  # bulk IN: towards the host
    payloads_out: Endpoint  # bulk OUT: from the host

    def all(self) -> tuple[Endpoint, ...]:
        return (self.requests, self.responses, self.payloads_in, self.payloads_out)


class Plane(Protocol):
    """The data of one link epoch."""

    def begin(self, packet_bytes: int, wire_epoch: int) -> None:
        """A new link epoch: nothing from before counts."""

    def arm(self) -> None:
        """Queue reads for what the host will send. The kernel holds none of an earlier epoch any more."""

    def send(self, send: Send, epoch: int, address: int) -> None:
        """A Request, and its payload from `address`; `Receiver.left` tells when the slot is free of that."""

    def fill(self, pending: Pending, epoch: int, address: int, size_bytes: int) -> None:
        """v0: read the next payload from bulk OUT to `address`; then `Receiver.filled`."""

    def pump(self) -> None:
        """Hand what is queued to the kernel."""

    def ended(self, endpoint: Endpoint, transfer: Transfer, result: int) -> None:
        """A transfer of this epoch has ended with `result` bytes. If they are not what must come, BrokenLink or, where
        the host has sent them, WireError.
        """
