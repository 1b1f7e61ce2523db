"""A wire v1 host of a hundred lines for tests: serves one export from memory, resynchronises, and can misbehave.

Not the product's host: what it sends and expects is written here once more, from ARCHITECTURE.md.
"""

import contextlib
import queue
import secrets
import threading
from collections.abc import Callable

from common.framing import Packer, Unpacker
from common.wire import ExportRecord, Op
from common.wire_v1 import CONTROL_TYPE_V1, HELLO_BYTES, ConfigV1, ControlV1, ExportV1, Hello, Record
from tests.e2e.v0_host import V0Host, await_event

EPIPE = 32
NO_LIMIT = 0


class V1Host(V0Host):
    """`data` is the disk. `resyncs` counts the boundaries after the first; `ended` says why it serves no more."""

    def __init__(self, record: ExportRecord) -> None:
        super().__init__(record)
        self.exports: tuple[ExportV1, ...] = (ExportV1(record, name="disk"),)
        self.boot_id = bytes(16)  # all zero: it does not say, as a v0 host
        self.refuse: Callable[[Record], int] = lambda record: 0
        self.records: list[Record] = []
        self.resyncs = 0
        self.resynced = threading.Event()
        self.epoch = 0
        self.spoil: Callable[[bytes], bytes] = lambda frame: frame
        self._begun: dict[int, bytearray] = {}
        self._running = True
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._writing = threading.Lock()
        self._writer: threading.Thread | None = None

    def hello(self) -> Hello:
        kind = CONTROL_TYPE_V1[ControlV1.HELLO]
        return Hello.decode(self.device.control(kind, ControlV1.HELLO, HELLO_BYTES))

    def boundary(self) -> None:
        """SET_INTERFACE: nothing of before is in either kernel any more; then a new epoch."""
        self.device.set_interface()
        self.epoch = secrets.randbits(63) + 1
        self._begun.clear()
        self._unpacker = Unpacker(self.epoch)
        self._packer: Packer[bytes] = Packer(self.epoch)

    def announce(self) -> None:
        data = ConfigV1(self.epoch, self.boot_id, self.exports).encode()
        self.device.control(CONTROL_TYPE_V1[ControlV1.CONFIG], ControlV1.CONFIG, data)

    def online(self) -> "V1Host":
        """Hand-shake, and serve in a thread until told to stop or the link ends otherwise than by a halt."""
        self.hello()
        self.boundary()
        self.announce()
        await_event("exports to be active", lambda: self.status().active)
        self.serve()
        return self

    def send(self, frame: bytes) -> None:
        self._outgoing.put(self.spoil(frame))

    # -- serving -------------------------------------------------------------------------------------------------
    def serve(self) -> None:
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()
        super().serve()

    def _write(self) -> None:
        """A thread's life: a write that nobody reads must not keep the reader from seeing the halt."""
        while (frame := self._outgoing.get()) is not None:
            with self._writing, contextlib.suppress(OSError):
                self._payloads_out.write(frame, NO_LIMIT)

    def _serve(self) -> None:
        while True:
            try:
                data = self._payloads_in.read(65536, NO_LIMIT)
            except OSError as error:
                if error.errno != EPIPE or not self._running:
                    self.ended = str(error)
                    return
                self._start_over()
                continue
            for record, where in self._unpacker.take(data):
                self._take(record, data[where : where + record.data_bytes])
            self._flush()

    def _start_over(self) -> None:
        self.resyncs += 1
        with contextlib.suppress(queue.Empty):
            while True:
                self._outgoing.get_nowait()
        self.device.set_interface()  # ends the write that is under way
        with self._writing:
            await_event("the gadget to take CONFIG after its usb was replaced", self._announced)
        self.resynced.set()

    def _announced(self) -> bool:
        """One attempt. A gadget whose usb is replaced once more in the middle of it stalls, as any host must expect."""
        try:
            self.boundary()
            self.announce()
        except OSError:
            if not self._running:
                raise
            return False
        return True

    def _take(self, record: Record, data: bytes) -> None:
        start, size = record.lba * self.record.block_size, record.blocks * self.record.block_size
        if record.data_offset == 0:
            self.records.append(record)
        if record.op is Op.WRITE:
            have = self._begun.setdefault(record.request_id, bytearray())
            assert len(have) == record.data_offset
            have += data
            if len(have) < size:
                return
            payload = self._begun.pop(record.request_id)
        status = self.refuse(record)
        if record.op is Op.WRITE and status == 0:
            self.data[start : start + size] = payload
        answer = bytes(self.data[start : start + size]) if record.op is Op.READ and status == 0 else b""
        reply = Record(record.op, status, record.request_id, record.export_id, record.lba, record.blocks)
        self._packer.add(reply, len(answer), answer)

    def _flush(self) -> None:
        while (frame := self._packer.take()) is not None:
            body = b"".join(part.token[part.offset : part.offset + part.size_bytes] for part in frame.parts)
            self.send(frame.head + body + bytes(frame.pad))

    def leave(self) -> None:
        """As a v0 host does. The writer is ended before the handle is closed under it, which would crash libusb."""
        self._running = False
        self._outgoing.put(None)
        super().leave()

    def _ended(self) -> bool:
        return super()._ended() and (self._writer is None or not self._writer.is_alive())
