"""A block device of the host that records: the kernel's /dev/nbdN, and its server, which keeps the bytes in memory.

What the host's kernel sends is written down as tests.power.replay's entries, with whatever reaches it in between: this
is beneath the page cache, so a write that nobody has flushed is not even here. linux/nbd.h and, for the bytes on the
socket, the NBD protocol's "simple reply". FUA is not offered: the block layer then flushes behind such a write.
"""

import contextlib
import fcntl
import os
import socket
import struct
from pathlib import Path
from threading import Thread
from typing import Final

from tests.power.replay import Entry

_SET_SOCK, _SET_BLKSIZE, _SET_SIZE_BLOCKS, _SET_FLAGS = 0xAB00, 0xAB01, 0xAB07, 0xAB0A  # linux/nbd.h, ioctls
_DO_IT, _CLEAR_SOCK, _DISCONNECT = 0xAB03, 0xAB04, 0xAB08
_HAS_FLAGS, _SEND_FLUSH, _SEND_TRIM = 1, 4, 32
_READ, _WRITE, _DISC, _FLUSH, _TRIM = range(5)
_REQUEST: Final = struct.Struct(">IIQQI")  # struct nbd_request: magic, flags and type, cookie, from, length
_REPLY: Final = struct.Struct(">IIQ")  # struct nbd_reply: magic, error, cookie
_REQUEST_MAGIC, _REPLY_MAGIC = 0x25609513, 0x67446698
_BLOCK: Final = 4096


class RecordingDisk:
    """`device` is there until `close`. `entries` grows; whoever has been told that I/O is done finds it in there."""

    def __init__(self, size_bytes: int, device: Path = Path("/dev/nbd0")) -> None:
        self.device, self.memory = device, bytearray(size_bytes)
        self.entries: list[Entry] = []
        self.fault = ""
        self._next = 0
        ours, kernels = socket.socketpair()
        self._socket = ours
        self._fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        with kernels:
            fcntl.ioctl(self._fd, _SET_SOCK, kernels.fileno())
        fcntl.ioctl(self._fd, _SET_BLKSIZE, _BLOCK)
        fcntl.ioctl(self._fd, _SET_SIZE_BLOCKS, size_bytes // _BLOCK)
        fcntl.ioctl(self._fd, _SET_FLAGS, _HAS_FLAGS | _SEND_FLUSH | _SEND_TRIM)
        self._threads = [Thread(target=self._serve, daemon=True), Thread(target=self._connected, daemon=True)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """The device has no bytes any more; nobody may have it open."""
        fcntl.ioctl(self._fd, _DISCONNECT)
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), "the kernel does not let go of its NBD device"
        self._socket.close()
        os.close(self._fd)

    def _connected(self) -> None:
        with contextlib.suppress(OSError):  # ended by our disconnect
            fcntl.ioctl(self._fd, _DO_IT)
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._fd, _CLEAR_SOCK)

    def _serve(self) -> None:
        with contextlib.suppress(EOFError):
            while self._one():
                pass
        with contextlib.suppress(OSError):  # it has gone first
            self._socket.shutdown(socket.SHUT_RDWR)  # for which the kernel waits, and not for its own word

    def _one(self) -> bool:
        magic, kind, cookie, at, size = _REQUEST.unpack(self._take(_REQUEST.size))
        assert magic == _REQUEST_MAGIC
        if kind == _DISC:
            return False
        self._next += 1
        if kind == _READ:
            self._socket.sendall(_REPLY.pack(_REPLY_MAGIC, 0, cookie) + self.memory[at : at + size])
            return True
        if kind == _WRITE:
            self._change(at, self._take(size))
        elif kind == _TRIM:
            self._change(at, bytes(size))
        elif kind == _FLUSH:
            self.entries += [Entry(0, "sync", self._next), Entry(0, "synced", self._next)]
        else:
            self.fault = f"the kernel asks for {kind:#x}, which was not offered"
        self._socket.sendall(_REPLY.pack(_REPLY_MAGIC, 0, cookie))
        return True

    def _change(self, at: int, data: bytes) -> None:
        self.entries.append(Entry(0, "write", self._next, at, data))
        self.memory[at : at + len(data)] = data
        self.entries.append(Entry(0, "written", self._next))

    def _take(self, size_bytes: int) -> bytes:
        data = b""
        while len(data) < size_bytes:
            part = self._socket.recv(size_bytes - len(data))
            if not part:
                raise EOFError
            data += part
        return data
