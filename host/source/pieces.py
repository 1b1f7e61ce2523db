"""A small cache of a remote object's bytes: fetched and kept in pieces, the least recently used one goes first.

Several threads read at once; two that miss the same piece both fetch it, which costs time and nothing else. Used by
host.source.http and host.source.remote.
"""

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Final

PIECE_BYTES: Final = 64 * 1024  # what is fetched and kept: a few reads of a file system that lie close together
KEPT: Final = 64  # pieces: 4 MiB for each export


class Pieces:
    """Of an object of `size_bytes`. `fetch(first, end)` gives exactly the bytes from `first` up to `end`, or raises."""

    def __init__(self, size_bytes: int, fetch: Callable[[int, int], bytes]) -> None:
        self._size_bytes, self._fetch = size_bytes, fetch
        self._lock = Lock()
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def read(self, offset: int, into: memoryview) -> None:
        """Fill `into` from `offset` on."""
        done = 0
        while done < len(into):
            number, start = divmod(offset + done, PIECE_BYTES)
            part = self._piece(number)[start : start + len(into) - done]
            into[done : done + len(part)] = part
            done += len(part)

    def _piece(self, number: int) -> bytes:
        with self._lock:
            if (found := self._kept.get(number)) is not None:
                self._kept.move_to_end(number)
                return found
        first = number * PIECE_BYTES
        data = self._fetch(first, min(first + PIECE_BYTES, self._size_bytes))
        with self._lock:
            self._kept[number] = data
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return data
