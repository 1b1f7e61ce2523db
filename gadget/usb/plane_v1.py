"""Data as wire v1 carries it: frames on the two bulk endpoints, each of them one transfer that says what it is.

Frames leave while few are in flight, so a lone Request goes at once and a crowd travels together. A frame's head and
payloads are gathered from where they lie; FunctionFS copies them at submission, so one head buffer serves all of them.
"""

import ctypes
import mmap
from ctypes import addressof, c_char
from typing import Final

from common import limits
from common.framing import Frame, Packer, Unpacker
from common.wire_v1 import Record
from gadget.usb.core import Pending, Send
from gadget.usb.endpoint import Endpoint, Transfer
from gadget.usb.plane import BrokenLink, Endpoints, Receiver

_HEAD_ROOM: Final = 8192  # head and FRAME_RECORDS records are 4120 bytes
_PAD_AT: Final = _HEAD_ROOM - 64  # zero bytes that nothing writes


class _Iovec(ctypes.Structure):
    """struct iovec (readv(2))."""

    _fields_ = (("iov_base", ctypes.c_uint64), ("iov_len", ctypes.c_uint64))


class PlaneV1:
    """See gadget.usb.plane. The token of a message is what was sent, its link epoch, and where its payload lies."""

    def __init__(self, endpoints: Endpoints, receiver: Receiver) -> None:
        self._out, self._in, self._receiver = endpoints.payloads_in, endpoints.payloads_out, receiver
        self._memory = mmap.mmap(-1, _HEAD_ROOM + limits.FRAME_READS * limits.FRAME_BYTES)
        self._view = memoryview(self._memory)
        self._base = addressof(c_char.from_buffer(self._memory))
        self._iovecs = (_Iovec * (limits.FRAME_RECORDS + 2))()
        self.begin(0, 0)

    def begin(self, packet_bytes: int, wire_epoch: int) -> None:
        self._packer: Packer[tuple[Pending, int, int]] = Packer(wire_epoch)
        self._unpacker = Unpacker(wire_epoch)

    def arm(self) -> None:
        for index in range(limits.FRAME_READS):
            self._queue_read(self._base + _HEAD_ROOM + index * limits.FRAME_BYTES)

    def _queue_read(self, address: int) -> None:
        self._in.queue([Transfer(None, address, limits.FRAME_BYTES, limits.FRAME_BYTES)])

    # -- towards the host ----------------------------------------------------------------------------------------
    def send(self, send: Send, epoch: int, address: int) -> None:
        r = send.pending.request
        record = Record(r.op, r.flags, r.request_id, r.export_id, r.lba, r.blocks)
        self._packer.add(record, send.payload_bytes, (send.pending, epoch, address))

    def fill(self, pending: Pending, epoch: int, address: int, size_bytes: int) -> None:
        raise AssertionError("v1 data come with their Response")

    def pump(self) -> None:
        while self._out.in_flight < limits.FRAMES_IN_FLIGHT and (frame := self._packer.take()) is not None:
            self._submit(frame)
        self._in.pump()

    def _submit(self, frame: Frame[tuple[Pending, int, int]]) -> None:
        self._memory[: len(frame.head)] = frame.head
        vectors = [(self._base, len(frame.head))]
        vectors += [(part.token[2] + part.offset, part.size_bytes) for part in frame.parts if part.size_bytes]
        if frame.pad:
            vectors.append((self._base + _PAD_AT, frame.pad))
        for index, (address, size) in enumerate(vectors):
            self._iovecs[index].iov_base, self._iovecs[index].iov_len = address, size
        self._out.gather(addressof(self._iovecs), len(vectors), frame.size_bytes)
        for part in frame.parts:
            if part.last and part.size_bytes:
                self._receiver.left(part.token[0], part.token[1])

    # -- from the host -------------------------------------------------------------------------------------------
    def ended(self, endpoint: Endpoint, transfer: Transfer, result: int) -> None:
        if endpoint is self._out:
            if result != transfer.expected:
                raise BrokenLink(f"{endpoint.name}: {result} bytes of {transfer.expected} were taken")
            return
        offset = transfer.address - self._base
        for record, where in self._unpacker.take(self._view[offset : offset + result]):
            self._receiver.record(record, transfer.address + where)
        self._queue_read(transfer.address)
