"""Data as wire v1 carries it: frames on the two bulk endpoints, each of them one transfer that says what it is.

Frames leave while few are in flight, so a lone Request goes at once and a crowd travels together. A frame's head and
payloads are gathered from where they lie; FunctionFS copies them at submission, so one head buffer serves all of them.

Nobody waits for the end of a frame that has room behind it, so that end wakes nobody: it is found with the answer. Only
the last places in flight are told of, and what frees them frees all before them too.
"""

import mmap
import struct
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
_UNTOLD: Final = limits.FRAMES_IN_FLIGHT // 2  # frames in flight whose ends wake nobody; the wire has more to do then


_IOVEC: Final = struct.Struct("<QQ")  # struct iovec (readv(2)): iov_base, iov_len


class PlaneV1:
    """See gadget.usb.plane. The token of a message is what was sent, its link epoch, and where its payload lies."""

    def __init__(self, endpoints: Endpoints, receiver: Receiver) -> None:
        self._out, self._in, self._receiver = endpoints.payloads_in, endpoints.payloads_out, receiver
        self._memory = mmap.mmap(-1, _HEAD_ROOM + limits.FRAME_READS * limits.FRAME_BYTES)
        self._view = memoryview(self._memory)
        self._base = addressof(c_char.from_buffer(self._memory))
        self._iovecs = (c_char * ((limits.FRAME_RECORDS + 2) * _IOVEC.size))()
        self.begin(0, 0)

    def begin(self, packet_bytes: int, wire_epoch: int) -> None:
        self._packer: Packer[tuple[Pending, int, int]] = Packer(wire_epoch)
        self._unpacker = Unpacker(wire_epoch)

    def arm(self) -> None:
        for index in range(limits.FRAME_READS):
            address = self._base + _HEAD_ROOM + index * limits.FRAME_BYTES
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
        head, count = len(frame.head), 1
        self._memory[:head] = frame.head
        _IOVEC.pack_into(self._iovecs, 0, self._base, head)
        for part in frame.parts:
            if part.size_bytes:
                address = part.token[2] + part.offset
                _IOVEC.pack_into(self._iovecs, count * _IOVEC.size, address, part.size_bytes)
                count += 1
        if frame.pad:
            _IOVEC.pack_into(self._iovecs, count * _IOVEC.size, self._base + _PAD_AT, frame.pad)
            count += 1
        told = self._out.in_flight >= _UNTOLD
        self._out.gather(addressof(self._iovecs), count, frame.size_bytes, told)
        for part in frame.parts:
            if part.last and part.size_bytes:
                self._receiver.left(part.token[0], part.token[1])

    # -- from the host -------------------------------------------------------------------------------------------
    def ended(self, endpoint: Endpoint, transfer: Transfer, result: int) -> None:
        if endpoint is self._out:
            if result != transfer.expected:
                raise BrokenLink(f"{endpoint.name}: {result} bytes of {transfer.expected} were taken")
            return
        start = transfer.address - self._base
        frame = self._view[start : start + result]
        self._receiver.records(self._unpacker.take(frame), frame)
        self._in.queue([transfer])  # the same read once more
