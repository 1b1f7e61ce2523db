"""Data as wire v1 carries it, seen from the host: frames on the two bulk endpoints, each one URB.

Fragments of a write go from the frame's buffer to their place in the arena; those that have no place yet are held, and
above HELD_BYTES of them no frame is read until a source has made room. Answers are packed into frames while few are on
their way, so a lone one leaves at once and a crowd travels together.
"""

import ctypes
from dataclasses import dataclass, field

from common import limits, trace
from common.errors import WireError
from common.framing import Frame, Packer, Unpacker
from common.wire_v1 import Record
from host.usb.core import Answer
from host.usb.device import Buffer, Pipe
from host.usb.plane import Receiver
from host.usb.streams import Stream, Streams


@dataclass(slots=True)
class _Intake:
    """A write's payload on its way in. `address` None while it is `placed`: thrown away."""

    sequence: int
    size_bytes: int
    got: int = 0
    placed: bool = False
    address: int | None = None
    held: list[bytes] = field(default_factory=list)


class PlaneV1:
    """See host.usb.plane. One object for each epoch."""

    def __init__(self, streams: Streams, receiver: Receiver, epoch: int) -> None:
        self._receiver = receiver
        self._in = Stream(streams, Pipe.PAYLOADS_IN, limits.FRAME_READS)
        self._out = Stream(streams, Pipe.PAYLOADS_OUT, limits.FRAMES_IN_FLIGHT)
        self._frame = Buffer(limits.FRAME_BYTES)  # for all reads: usbfs fills it when one is reaped
        self._leaving = Buffer(limits.FRAME_BYTES)  # for all writes: usbfs copies it when one is submitted
        self._packer: Packer[tuple[int, int, int]] = Packer(epoch)  # sequence, address, size of the payload
        self._unpacker = Unpacker(epoch)
        self._intakes: dict[int, _Intake] = {}  # by sequence
        self._asked: dict[tuple[int, int], int] = {}  # (export id, request id) of unfinished writes, to sequence
        self._held_bytes = 0
        self._unread = 0  # reads that wait for HELD_BYTES to shrink

    def begin(self) -> None:
        for _ in range(limits.FRAME_READS):
            self._read()

    def _read(self) -> None:
        self._in.queue(self._frame.address, limits.FRAME_BYTES, self._arrived)

    # -- from the gadget -----------------------------------------------------------------------------------------
    def _arrived(self, size_bytes: int) -> None:
        for record, where in self._unpacker.take(self._frame.view[:size_bytes]):
            self._take_record(record, where)
        if self._held_bytes > limits.HELD_BYTES:
            self._unread += 1
        else:
            self._read()

    def _take_record(self, record: Record, where: int) -> None:
        key = (record.export_id, record.request_id)
        if record.data_offset == 0:
            sequence = self._receiver.request(record)
            if sequence is None:
                return
            size = self._receiver.payload_of(sequence)
            if key in self._asked:
                raise WireError(f"a second write before the first has all come: {record}")
            self._asked[key] = sequence
            self._intakes.setdefault(sequence, _Intake(sequence, size)).size_bytes = size
        intake = self._intakes.get(self._asked.get(key, 0))
        if intake is None or record.data_offset != intake.got or not record.data_bytes:
            raise WireError(f"a fragment out of its place: {record}")
        if intake.got + record.data_bytes > intake.size_bytes:
            raise WireError(f"more data than the {intake.size_bytes} bytes of the write: {record}")
        self._put(intake, where, record.data_bytes)
        if intake.got == intake.size_bytes:
            del self._asked[key]
            self._finish(intake)

    def _put(self, intake: _Intake, where: int, size_bytes: int) -> None:
        if not intake.placed:
            intake.held.append(bytes(self._frame.view[where : where + size_bytes]))
            self._held_bytes += size_bytes
        elif intake.address is not None:
            ctypes.memmove(intake.address + intake.got, self._frame.address + where, size_bytes)
        intake.got += size_bytes

    def take(self, sequence: int, address: int | None, size_bytes: int) -> None:
        """The payload of `sequence` belongs at `address`; None: nowhere."""
        intake = self._intakes.setdefault(sequence, _Intake(sequence, size_bytes))
        intake.placed, intake.address, offset = True, address, 0
        for data in intake.held:
            if address is not None:
                ctypes.memmove(address + offset, data, len(data))
            offset += len(data)
        self._held_bytes -= offset
        intake.held.clear()
        self._finish(intake)
        while self._unread and self._held_bytes <= limits.HELD_BYTES:
            self._unread -= 1
            self._read()

    def _finish(self, intake: _Intake) -> None:
        if intake.placed and intake.got == intake.size_bytes:
            del self._intakes[intake.sequence]
            self._receiver.taken(intake.sequence)

    # -- towards the gadget --------------------------------------------------------------------------------------
    def answer(self, answer: Answer, address: int) -> None:
        if len(self._packer) >= limits.MAX_UNWRITTEN:
            raise WireError(f"the gadget leaves {limits.MAX_UNWRITTEN} Responses unread")
        r = answer.response
        record = Record(r.op, r.status, r.request_id, r.export_id, r.lba, r.blocks)
        self._packer.add(record, answer.size_bytes, (answer.sequence, address, answer.size_bytes))

    def pump(self) -> None:
        while self._out.in_flight < limits.FRAMES_IN_FLIGHT and (frame := self._packer.take()) is not None:
            self._submit(frame)
            trace.point("usb.frame.submitted")

    def _submit(self, frame: Frame[tuple[int, int, int]]) -> None:
        start = len(frame.head)
        self._leaving.view[:start] = frame.head
        for part in frame.parts:
            ctypes.memmove(self._leaving.address + start, part.token[1] + part.offset, part.size_bytes)
            start += part.size_bytes
        self._leaving.view[start : start + frame.pad] = bytes(frame.pad)

        def written(size_bytes: int) -> None:
            if size_bytes != frame.size_bytes:
                raise WireError(f"{size_bytes} bytes of a frame of {frame.size_bytes} were taken")

        self._out.queue(self._leaving.address, frame.size_bytes, written)
        for part in frame.parts:
            if part.last and part.size_bytes:
                self._receiver.sent(part.token[0])
