"""Data as smoo v0 carries it: Requests on interrupt IN, Responses on interrupt OUT, bare payloads on bulk IN and OUT.

Payloads have no header, so their order is everything: those of writes follow the order of the Requests, those of reads
the order of the Responses.
"""

import mmap
from ctypes import addressof, c_char
from typing import Final

from common import limits
from common.errors import WireError
from common.wire import MESSAGE_BYTES
from gadget.usb.core import Pending, Send
from gadget.usb.endpoint import Endpoint, Transfer, pieces
from gadget.usb.plane import BrokenLink, Endpoints, Receiver

_BUFFER: Final = 1024  # bytes for one Response: a whole packet at every speed
_SLOT: Final = 64  # bytes for each outgoing message
# Every request of every export may be waiting at once: a queue has at most MAX_QUEUE_DEPTH tags, and its dead
# predecessor's orphans as many again.
_SLOTS: Final = 2 * limits.MAX_EXPORTS * limits.MAX_QUEUE_DEPTH


class PlaneV0:
    """See gadget.usb.plane."""

    def __init__(self, endpoints: Endpoints, receiver: Receiver) -> None:
        self._to, self._receiver = endpoints, receiver
        self._messages = mmap.mmap(-1, _SLOTS * _SLOT + limits.MESSAGE_READS * _BUFFER)
        self._base = addressof(c_char.from_buffer(self._messages))
        self._free: list[int] = []
        self._packet_bytes = 512

    def begin(self, packet_bytes: int, wire_epoch: int) -> None:
        self._packet_bytes = packet_bytes
        self._free = [self._base + index * _SLOT for index in range(_SLOTS)]

    def arm(self) -> None:
        for index in range(limits.MESSAGE_READS):
            self._queue_response_read(self._base + _SLOTS * _SLOT + index * _BUFFER)

    def _queue_response_read(self, address: int) -> None:
        self._to.responses.queue([Transfer(None, address, _BUFFER, MESSAGE_BYTES)])

    def send(self, send: Send, epoch: int, address: int) -> None:
        slot, data = self._free.pop(), send.pending.request.encode()
        offset = slot - self._base
        self._messages[offset : offset + len(data)] = data
        self._to.requests.queue([Transfer(None, slot, len(data), len(data))])
        if send.payload_bytes:
            key = (send.pending, epoch)
            self._to.payloads_in.queue(pieces(key, address, send.payload_bytes, self._packet_bytes))

    def fill(self, pending: Pending, epoch: int, address: int, size_bytes: int) -> None:
        self._to.payloads_out.queue(pieces((pending, epoch), address, size_bytes, self._packet_bytes))

    def pump(self) -> None:
        for endpoint in self._to.all():
            endpoint.pump()

    def ended(self, endpoint: Endpoint, transfer: Transfer, result: int) -> None:
        if endpoint is self._to.responses:
            return self._response(transfer, result)
        if result != transfer.expected:
            broken = WireError if endpoint is self._to.payloads_out else BrokenLink
            raise broken(f"{endpoint.name}: {result} bytes, not {transfer.expected}")
        if endpoint is self._to.requests:
            self._free.append(transfer.address)
        elif transfer.last and transfer.key is not None:
            tell = self._receiver.left if endpoint is self._to.payloads_in else self._receiver.filled
            tell(*transfer.key)

    def _response(self, transfer: Transfer, result: int) -> None:
        offset = transfer.address - self._base
        data = self._messages[offset : offset + result]
        self._queue_response_read(transfer.address)
        self._receiver.message(data)
