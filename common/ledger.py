"""How many bytes of an export were acknowledged, how many a FLUSH has covered, and which boot of the host has them.

Four u64 in memory that outlives whoever writes them (bus.books maps it), so each step is one store and a kill between
two of them errs towards "not flushed". The gadget's usb keeps one for each export and enters a write before its queue
hears of it; the host's source keeps one of what it has told usb. One writer at a time; readers see whole numbers.
"""

import ctypes
from typing import Final

LEDGER_BYTES: Final = 32
NO_BOOT: Final = bytes(16)  # of a v0 host, which does not say
UNKNOWN_BOOT: Final = b"\xff" * 16  # nobody knows what was acknowledged, nor which boot of the host has it
_ACKNOWLEDGED, _FLUSHED, _BOOT_HIGH, _BOOT_LOW = range(4)


class Ledger:
    """A view of `memory`: zeroes are a ledger of nothing."""

    def __init__(self, memory: "bytearray | memoryview") -> None:
        # ctypes stores a number in one piece; a process killed in the middle leaves the old one or the new one.
        self._words = (ctypes.c_uint64 * 4).from_buffer(memory)

    @property
    def acknowledged(self) -> int:
        """Bytes of all writes acknowledged so far: what a FLUSH that is sent now will cover."""
        return self._words[_ACKNOWLEDGED]

    @property
    def unflushed(self) -> int:
        """Bytes acknowledged, and not covered by an acknowledged FLUSH."""
        return max(0, self._words[_ACKNOWLEDGED] - self._words[_FLUSHED])

    @property
    def boot_id(self) -> bytes:
        """Of the host that has what is unflushed; NO_BOOT if it did not say."""
        return self._words[_BOOT_HIGH].to_bytes(8, "big") + self._words[_BOOT_LOW].to_bytes(8, "big")

    def wrote(self, size_bytes: int, boot_id: bytes = NO_BOOT) -> None:
        """Enter a write that is about to be acknowledged, done by a host of this boot."""
        if not self.unflushed and not self.unknown:
            self._stamp(boot_id)  # first: a ledger with nothing unflushed may name any boot
        self._words[_ACKNOWLEDGED] += size_bytes

    def flushed(self, up_to: int) -> None:
        """A FLUSH is acknowledged that was sent when `acknowledged` was `up_to`."""
        self._words[_FLUSHED] = max(self._words[_FLUSHED], up_to)

    def accept(self, boot_id: bytes) -> None:
        """The operator takes what a host of this boot has: nothing from before is waited for any more."""
        self.flushed(self.acknowledged)
        self._stamp(boot_id)

    @property
    def unknown(self) -> bool:
        """Was the ledger of before lost? It stays so until somebody accepts what the host has."""
        return self.boot_id == UNKNOWN_BOOT

    def distrust(self) -> None:
        """This one begins in the middle of a device's life: what there was is not in it."""
        self._stamp(UNKNOWN_BOOT)

    def lost_to(self, boot_id: bytes) -> bool:
        """May unflushed writes be missing at a host of this boot? A v0 host does not say which boot it is: unknown."""
        told = NO_BOOT not in (boot_id, self.boot_id)
        return bool(self.unflushed or self.unknown) and told and boot_id != self.boot_id

    def _stamp(self, boot_id: bytes) -> None:
        self._words[_BOOT_HIGH] = int.from_bytes(boot_id[:8], "big")
        self._words[_BOOT_LOW] = int.from_bytes(boot_id[8:], "big")
