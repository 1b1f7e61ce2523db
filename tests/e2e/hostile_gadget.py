"""A raw gadget on FunctionFS for tests of the host: speaks v0 or v1, and says on ep0 and in frames what it is told to.

Not the product's gadget: no ublk, no replay, nothing is judged.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from common import limits
from common.framing import Packer, Unpacker
from common.wire import ConfigExports, Op
from common.wire_v1 import ConfigV1, ControlV1, ExportV1, Hello, Record
from gadget.usb.functionfs import EventType, FfsEvent
from tests.e2e.v0_gadget import V0Gadget

Answer = tuple[Record, bytes]


class HostileGadget(V0Gadget):
    """`lies`: what is answered on ep0 in place of the truth, by bRequest. `version` is chosen while it is unplugged."""

    def __init__(self, mount_point: Path) -> None:
        self.version = 1
        self.lies: dict[int, Callable[[], bytes]] = {}
        self.told = 0  # lies
        self.config: ConfigV1 | None = None
        self._packer: Packer[bytes] = Packer(0)
        self._unpacker = Unpacker(0)
        super().__init__(mount_point)

    def _event(self, event: FfsEvent) -> None:
        setup = event.type is EventType.SETUP
        if setup and event.request in self.lies:
            self.told += 1
            self._ep0.reply(event, self.lies[event.request]())
        elif setup and event.request == ControlV1.HELLO and self.version == 1:
            self._ep0.reply(event, Hello().encode())
        elif setup and event.request == ControlV1.CONFIG and self.version == 1:
            self._take(ConfigV1.decode(self._ep0.read(event)))
        else:
            super()._event(event)

    def _take(self, config: ConfigV1) -> None:
        if self.config is None or config.epoch != self.config.epoch:
            self._packer, self._unpacker = Packer(config.epoch), Unpacker(config.epoch)
        self.config = config
        self.exports = ConfigExports(tuple(export.record for export in config.exports))
        self.configurations += 1

    def speak(self, version: int) -> None:
        """Come back as a gadget of that version, and wait for the host."""
        self.unplug()
        before, self.version = self.configurations, version
        self.plug()
        self.wait_configured(before)

    def named(self, name: str) -> ExportV1:
        assert self.config is not None
        return next(export for export in self.config.exports if export.name == name)

    # -- v1 ------------------------------------------------------------------------------------------------------
    def frames(self, *requests: tuple[Record, bytes]) -> list[bytes]:
        """The next frames of this epoch. Whoever does not send them all, as they are, breaks the protocol."""
        for record, payload in requests:
            self._packer.add(record, len(payload), payload)
        frames = []
        while (frame := self._packer.take()) is not None:
            body = b"".join(part.token[part.offset : part.offset + part.size_bytes] for part in frame.parts)
            frames.append(frame.head + body + bytes(frame.pad))
        return frames

    def write_frame(self, frame: bytes) -> None:
        """One transfer. It ends with a short packet, or the host could not tell its end."""
        os.write(self._payloads_in, frame if len(frame) % 512 or not frame else frame + b"\0")

    def flood(self, frames: list[bytes]) -> None:
        """Send until the host has had enough of it, and read nothing."""
        with contextlib.suppress(OSError):
            for frame in frames:
                self.write_frame(frame)

    def answers(self, count: int) -> dict[int, Answer]:
        """Read until so many are answered: by request id, with the payload."""
        done: dict[int, Answer] = {}
        begun: dict[int, bytes] = {}
        while len(done) < count:
            data = os.read(self._payloads_out, limits.FRAME_BYTES)
            for record, where in self._unpacker.take(data):
                begun[record.request_id] = begun.get(record.request_id, b"") + data[where : where + record.data_bytes]
                whole = self._size(record) if record.op is Op.READ and not record.mark else 0
                if len(begun[record.request_id]) == whole:
                    done[record.request_id] = (record, begun.pop(record.request_id))
        return done

    def _size(self, record: Record) -> int:
        assert self.exports is not None
        return record.blocks * next(e for e in self.exports.exports if e.export_id == record.export_id).block_size

    def ask_all(self, *requests: tuple[Record, bytes]) -> dict[int, Answer]:
        """v1: all at once; their answers."""
        for frame in self.frames(*requests):
            self.write_frame(frame)
        return self.answers(len(requests))
