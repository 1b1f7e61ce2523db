"""Messages with file descriptors over a Unix SEQPACKET socket: how roles talk to the spawner. ZeroMQ cannot carry fds.

One datagram is one msgpack dict, at most MESSAGE_BYTES, with at most MAX_FDS descriptors beside it. All received
descriptors are close-on-exec; on a malformed message they are closed before the error is raised.
"""

import array
import os
import socket
from typing import Any

import msgpack

from common.errors import Gone, WireError

MESSAGE_BYTES = 16 * 1024  # a spawn order with its arguments is a few hundred bytes
MAX_FDS = 8  # ep0..ep4 and a few to spare
_FD = array.array("i")


def send(sock: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    """Raises Gone if the other end is dead, BlockingIOError if it does not read, ValueError past the limits."""
    data: bytes = msgpack.packb(message)
    if len(data) > MESSAGE_BYTES or len(fds) > MAX_FDS:
        raise ValueError(f"message of {len(data)} bytes and {len(fds)} fds is past the limit")
    try:
        socket.send_fds(sock, [data], list(fds))
    except (BrokenPipeError, ConnectionResetError) as error:
        raise Gone(f"the other end of the fd socket is dead: {error.strerror}") from None


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Raises Gone at end of file, BlockingIOError when nothing is there, WireError if it is malformed."""
    try:
        # Not socket.recv_fds: it forgets the flags it is given, so the descriptors would survive an exec.
        data, ancillary, flags, _ = sock.recvmsg(
            MESSAGE_BYTES, socket.CMSG_SPACE(MAX_FDS * _FD.itemsize), socket.MSG_CMSG_CLOEXEC
        )
    except ConnectionResetError as error:
        raise Gone(f"the other end of the fd socket is dead: {error.strerror}") from None
    fds = _descriptors(ancillary)
    if not data and not fds:
        raise Gone("the other end of the fd socket is dead: end of file")
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise WireError("message on the fd socket is too long")
        message = msgpack.unpackb(data)
        if not isinstance(message, dict):
            raise WireError("message on the fd socket is not a dict")
    except (ValueError, msgpack.UnpackException, WireError) as error:
        for fd in fds:
            os.close(fd)
        raise WireError(f"fd socket: {error}") from None
    return message, fds


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)
