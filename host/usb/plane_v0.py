"""Data as smoo v0 carries it, seen from the host: Requests and Responses on the interrupt endpoints, bare payloads.

Payloads have no header, so their order is everything: those of writes are read in the order of their Requests, those of
reads written in the order of their Responses.
"""

from typing import Final

from common import limits
from common.errors import WireError
from common.wire import MESSAGE_BYTES
from host.usb.core import Answer
from host.usb.device import Buffer, Pipe
from host.usb.plane import Receiver
from host.usb.streams import Stream, Streams

_READ_BYTES: Final = 1024  # a multiple of every packet size: one that asks for less could overflow


class PlaneV0:
    """See host.usb.plane."""

    def __init__(self, streams: Streams, receiver: Receiver) -> None:
        self._receiver = receiver
        self._requests = Stream(streams, Pipe.REQUESTS, limits.MESSAGE_READS)
        self._responses = Stream(streams, Pipe.RESPONSES, limits.URBS_IN_FLIGHT)
        self._payloads_in = Stream(streams, Pipe.PAYLOADS_IN, limits.URBS_IN_FLIGHT)
        self._payloads_out = Stream(streams, Pipe.PAYLOADS_OUT, limits.URBS_IN_FLIGHT)
        self._message = Buffer(_READ_BYTES)  # for all reads: usbfs fills it when one is reaped
        self._answers = Buffer(limits.MAX_UNWRITTEN * MESSAGE_BYTES)
        self._free = list(range(limits.MAX_UNWRITTEN))
        self._sink = Buffer(limits.TRANSFER_BYTES)

    def begin(self) -> None:
        for _ in range(limits.MESSAGE_READS):
            self._read()

    def _read(self) -> None:
        self._requests.queue(self._message.address, _READ_BYTES, self._request)

    def _request(self, size_bytes: int) -> None:
        data = bytes(self._message.view[:size_bytes])
        self._read()
        self._receiver.message(data)

    def answer(self, answer: Answer, address: int) -> None:
        if not self._free:
            raise WireError(f"the gadget leaves {limits.MAX_UNWRITTEN} Responses unread")
        slot = self._free.pop()
        start = slot * MESSAGE_BYTES
        self._answers.view[start : start + MESSAGE_BYTES] = answer.response.encode()

        def written(size_bytes: int) -> None:
            self._free.append(slot)
            if size_bytes != MESSAGE_BYTES:
                raise WireError(f"{size_bytes} bytes of a Response were taken")

        self._responses.queue(self._answers.address + start, MESSAGE_BYTES, written)
        if answer.size_bytes:
            self._pieces(self._payloads_out, address, answer.size_bytes, answer.sequence, self._receiver.sent)

    def take(self, sequence: int, address: int | None, size_bytes: int) -> None:
        self._pieces(self._payloads_in, address, size_bytes, sequence, self._receiver.taken)

    def _pieces(self, stream: Stream, address: int | None, size_bytes: int, sequence: int, tell: object) -> None:
        """`size_bytes` in transfers of at most TRANSFER_BYTES; `address` None: read, and thrown away."""
        for start in range(0, size_bytes, limits.TRANSFER_BYTES):
            size = min(limits.TRANSFER_BYTES, size_bytes - start)
            last = start + size == size_bytes
            where = self._sink.address if address is None else address + start

            def ended(moved: int, size: int = size, last: bool = last) -> None:
                if moved != size:
                    raise WireError(f"a payload broke off: {moved} bytes where {size} were to come")
                if last:
                    tell(sequence)  # type: ignore[operator]

            stream.queue(where, size, ended)

    def pump(self) -> None:
        """Everything was queued as it came."""
