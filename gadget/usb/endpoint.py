"""One FunctionFS endpoint: transfers in order, a few of them in the kernel at a time, the rest waiting here.

An endpoint file is opened O_NONBLOCK: a transfer then ends with EAGAIN while the link is down, instead of blocking
io_submit. ESHUTDOWN from a transfer is link loss; the same fd works again after the next ENABLE.
"""

import errno
import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common import limits
from gadget.usb.aio import AioContext, Command
from gadget.usb.core import Pending

DEEP: Final = 16  # transfers of one endpoint that the kernel holds; deeper gains nothing and pins memory


@dataclass(slots=True)
class Transfer:
    """One piece of at most TRANSFER_BYTES. `key`: what a read fills, and the link epoch; None for others.
    `last` marks the last piece of a payload.

    `expected` is what a read should bring; `length` what is asked for, in whole packets: without a short packet a read
    that asks for more than arrives waits for ever, and one that asks for less than a packet overflows.
    """

    key: tuple[Pending, int] | None
    address: int
    length: int
    expected: int
    last: bool = True


def pieces(key: tuple[Pending, int] | None, address: int, size_bytes: int, packet_bytes: int) -> list[Transfer]:
    """Cut a payload into transfers. Reads are rounded up to whole packets: the slot has room (bus.arena.slot_bytes)."""
    cut = []
    for start in range(0, size_bytes, limits.TRANSFER_BYTES):
        expected = min(limits.TRANSFER_BYTES, size_bytes - start)
        length = -(-expected // packet_bytes) * packet_bytes
        cut.append(Transfer(key, address + start, length, expected, start + expected == size_bytes))
    return cut


def open_file(path: Path) -> int:
    """The fd of an endpoint file. OSError (ENOENT) before ep0 has been told the descriptors."""
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


class Endpoint:
    """`command` says the direction: PWRITE for IN endpoints, PREAD for OUT ones (seen from the host)."""

    def __init__(self, name: str, fd: int, command: Command, aio: AioContext) -> None:
        self.name, self.fd, self._command, self._aio = name, fd, command, aio
        self._waiting: deque[Transfer] = deque()
        self.submitted: dict[int, Transfer] = {}  # what the kernel holds, by number

    @property
    def in_flight(self) -> int:
        """Transfers that the kernel holds."""
        return len(self.submitted)

    def queue(self, transfers: list[Transfer]) -> None:
        """Add behind what is there; `pump` hands it to the kernel."""
        self._waiting.extend(transfers)

    def pump(self) -> None:
        """Keep the kernel busy. Raises what `AioContext.submit` does; what was not submitted stays queued."""
        while self._waiting and len(self.submitted) < DEEP:
            transfer = self._waiting[0]
            length = transfer.expected if self._command is Command.PWRITE else transfer.length
            number = self._aio.submit(self._command, self.fd, transfer.address, length)
            self.submitted[number] = transfer
            self._waiting.popleft()

    def gather(self, iovecs: int, count: int, size_bytes: int, told: bool = True) -> None:
        """One transfer on an IN endpoint, now, from `count` struct iovec at address `iovecs`: `size_bytes` in all.

        FunctionFS copies the bytes before this returns. `told`, and what it raises: as `AioContext.submit`.
        """
        number = self._aio.submit(Command.PWRITEV, self.fd, iovecs, count, told)
        self.submitted[number] = Transfer(None, 0, size_bytes, size_bytes)

    def ended(self, number: int) -> Transfer | None:
        """The transfer that had this number, if it was one of ours."""
        return self.submitted.pop(number, None)

    def halt(self) -> None:
        """Halt it: the host's transfers fail with EPIPE until it clears the halt (v1 resynchronisation).

        Raises BlockingIOError (EAGAIN) if the link is down, or, of an IN endpoint, if transfers are still queued in the
        kernel: only a fresh owner that has queued nothing can count on it. ESHUTDOWN if the link went down meanwhile.
        """
        try:  # the wrong direction is FunctionFS's way of saying halt
            if self._command is Command.PREAD:
                os.write(self.fd, b"!")
            else:
                os.read(self.fd, 1)
        except OSError as error:
            if error.errno != errno.EBADMSG:
                raise

    def forget(self) -> int:
        """Drop what waits, disown what the kernel still has (it will fail by itself); returns how many those are."""
        self._waiting.clear()
        count = len(self.submitted)
        self.submitted.clear()
        return count
