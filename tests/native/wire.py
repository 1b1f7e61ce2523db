"""How a process of a side reaches the model process: one SEQPACKET connection for each thing it has open.

The end of a connection is the model's only news of a death, as the last close of a file is a kernel's. Messages are
msgpack lists; a call is answered by `["ok", value]` or `["error", errno, text]`.
"""

import os
import socket
import threading
from pathlib import Path
from typing import Any

import msgpack

from bus.runtime import Runtime
from common.errors import Gone

MESSAGE_BYTES = 1 << 20  # more than any message: SEQPACKET cuts what does not fit
NAME = "machine"
_place: list[str] = []
_mine = threading.local()


def at(runtime: Runtime) -> None:
    """The model process of this side's bench: its socket lies beside the runtime directories."""
    be_at(runtime.root.parent)


def be_at(base: Path) -> None:
    _place[:] = [os.fspath(base / NAME)]
    line: Line | None = _mine.__dict__.pop("line", None)
    if line is not None:
        line.close()


class Line:
    """One connection. `opening`: what is opened; its answer is `opened`, its descriptors `fds`."""

    def __init__(self, *opening: Any) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            self._socket.connect(_place[0])
            self.fds: list[int] = []
            self.opened = self.call(*opening)
        except BaseException:
            self._socket.close()
            raise
        self.fd = self._socket.fileno()

    def send(self, *message: Any) -> None:
        self._socket.send(msgpack.packb(message))

    def call(self, *message: Any) -> Any:
        """Send, and wait for the answer. OSError with the errno that the model says."""
        self.send(*message)
        data, ancillary, _, _ = self._socket.recvmsg(MESSAGE_BYTES, socket.CMSG_SPACE(8 * 4), socket.MSG_CMSG_CLOEXEC)
        if not data:
            raise Gone("the model of the kernel is dead")
        for _, _, raw in ancillary:
            self.fds = [int.from_bytes(raw[n : n + 4], "little") for n in range(0, len(raw), 4)]
        kind, *values = msgpack.unpackb(data)
        if kind == "error":
            raise OSError(values[0], values[1])
        return values[0]

    def pushed(self) -> list[Any]:
        """What the model has said by itself: everything that is there."""
        found: list[Any] = []
        while True:
            try:
                data = self._socket.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            if not data:
                raise Gone("the model of the kernel is dead")
            found += msgpack.unpackb(data)

    def close(self) -> None:
        self._socket.close()


def call(*message: Any) -> Any:
    """A system call, so to speak: over a connection of this thread's own."""
    if not hasattr(_mine, "line"):
        _mine.line = Line("call")
    return _mine.line.call(*message)


def identity(fd: int) -> int:
    """What a descriptor stands for, whatever its number here: the inode of its socket."""
    return os.fstat(fd).st_ino
