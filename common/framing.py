"""Requests or Responses with their payloads, cut into frames of wire v1: in order, full, never longer than a read.

Pure; both sides use it. `Packer` says which bytes the next frame is made of, the caller gathers them; `Unpacker` checks
what arrived and says where each fragment's data lie. A fresh pair belongs to one epoch.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from common import limits
from common.wire_v1 import HEAD_BYTES, RECORD_BYTES, Record, pack_head, pack_record, padding, unpack_frame

T = TypeVar("T")
_LONGEST: Final = limits.FRAME_BYTES - 4  # a full read would wait for the short packet that ends it
_WORTHWHILE: Final = 4096  # bytes of a payload that a frame's rest must hold to begin it there


@dataclass(slots=True)
class Part(Generic[T]):
    """`size_bytes` of the payload of the message added with `token`, from `offset` on; `last` ends it."""

    token: T
    offset: int
    size_bytes: int
    last: bool


@dataclass(slots=True)
class Frame(Generic[T]):
    """Put on the wire: `head`, the bytes of each part, `pad` zero bytes. `size_bytes` is all of that."""

    head: bytes
    parts: list[Part[T]]
    pad: int
    size_bytes: int


class Packer(Generic[T]):
    """Messages on their way out. `add` never fails: the caller bounds how many are in flight."""

    def __init__(self, epoch: int) -> None:
        self._epoch, self._sequence = epoch, 0
        self._waiting: deque[tuple[Record, int, T]] = deque()
        self._sent = 0  # bytes of the first waiting payload that are in frames already

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, record: Record, payload_bytes: int, token: T) -> None:
        """Behind what waits; `payload_bytes` of it follow, wherever `token` says they lie."""
        self._waiting.append((record, payload_bytes, token))

    def take(self) -> Frame[T] | None:
        """The next frame, as full as what waits makes it; None if nothing waits."""
        if not self._waiting:
            return None
        records: list[bytes] = []
        parts: list[Part[T]] = []
        room = _LONGEST - HEAD_BYTES
        while self._waiting and len(records) < limits.FRAME_RECORDS:
            record, payload_bytes, token = self._waiting[0]
            left = payload_bytes - self._sent
            if room < RECORD_BYTES + min(left, _WORTHWHILE):
                break
            size = min(left, room - RECORD_BYTES)
            records.append(pack_record(record, self._sent, size))
            parts.append(Part(token, self._sent, size, size == left))
            room -= RECORD_BYTES + size
            if size < left:
                self._sent += size
                break
            self._sent = 0
            self._waiting.popleft()
        length = _LONGEST - room
        head = pack_head(self._epoch, self._sequence, len(records), length)
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        pad = padding(length)
        return Frame(b"".join((head, *records)), parts, pad, length + pad)


class Unpacker:
    """Frames on their way in."""

    def __init__(self, epoch: int) -> None:
        self._epoch, self._sequence = epoch, 0

    def take(self, data: bytes | memoryview) -> list[tuple[Record, int]]:
        """Each record of the next frame, and where in `data` its fragment begins. Raises WireError."""
        placed = unpack_frame(data, self._epoch, self._sequence)
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        return placed
