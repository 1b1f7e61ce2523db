"""The gadget's end of tools.bench.link: a process that streams or asks over its two bulk endpoints as it is told.

Each order comes over a socket, begins with the ENABLE that the host's SET_INTERFACE raises, and ends with the next one.
"""

import ctypes
import json
import os
import select
import socket
from enum import StrEnum
from typing import Final, NoReturn

from gadget.usb.aio import AioContext, Command
from gadget.usb.configfs import GadgetTree
from gadget.usb.endpoint import open_file
from gadget.usb.functionfs import Ep0, EventType
from gadget.usb.kept import ENDPOINT_NAMES

ASK_BYTES: Final = 60  # a frame with one Request: head and record
REPLY_BYTES: Final = 4096 + 512  # 4 KiB and a head, in whole packets
_DEEP: Final = 32
_LARGEST: Final = 65536


class Way(StrEnum):
    """As a disk's user sees it: a READ travels from host to gadget."""

    READ = "read"
    WRITE = "write"
    ROUND_TRIP = "round trip"


def live(tree: GadgetTree, orders: socket.socket) -> NoReturn:
    """Be that process, until killed."""
    try:
        GadgetEnd(tree, orders).run()
    finally:
        os._exit(1)  # never back into the command that forked us


class GadgetEnd:
    """See the module. Buffers hold nothing of meaning: all transfers of a kind share one."""

    def __init__(self, tree: GadgetTree, orders: socket.socket) -> None:
        self._orders = orders
        self._ep0 = Ep0.open(tree.mount_point)
        _, _, self._in, self._out = (open_file(tree.mount_point / name) for name in ENDPOINT_NAMES[1:])
        self._aio = AioContext(2 * _DEEP)
        self._memory = ctypes.create_string_buffer(2 * _LARGEST)
        self._address = ctypes.addressof(self._memory)
        self._poll = select.poll()
        self._poll.register(self._ep0.fd, select.POLLIN)
        self._poll.register(self._aio.eventfd, select.POLLIN)
        tree.bind()
        orders.send(b"bound")

    def run(self) -> None:
        self._await_enable()  # the configuration is chosen; each order begins and ends with another ENABLE
        while True:
            way, size_bytes, depth = json.loads(self._orders.recv(256))
            self._await_enable()
            if way == Way.ROUND_TRIP:
                self._ask(depth)
            else:
                self._stream(Way(way), size_bytes, depth)
            self._await_enable()
            while self._aio.outstanding:  # all of them were ended by the DISABLE before it
                self._aio.completions()
            self._orders.send(b"stopped")

    def _await_enable(self) -> None:
        while True:
            self._poll.poll()
            if any(event.type is EventType.ENABLE for event in self._ep0.events()):
                return

    def _submit(self, command: Command, size_bytes: int) -> int:
        fd = self._out if command is Command.PREAD else self._in
        return self._aio.submit(command, fd, self._address, size_bytes)

    def _stream(self, way: Way, size_bytes: int, depth: int) -> None:
        command = Command.PREAD if way is Way.READ else Command.PWRITE
        for _ in range(depth):
            self._submit(command, size_bytes)
        self._orders.send(b"ready")
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._ep0.fd:
                    return
            for _, result in self._aio.completions():
                if result < 0:
                    return
                self._submit(command, size_bytes)

    def _ask(self, depth: int) -> None:
        """`depth` questions out at all times; each answer is the reason for the next."""
        answers = set()
        for _ in range(depth):
            answers.add(self._submit(Command.PREAD, REPLY_BYTES))
        self._orders.send(b"ready")
        for _ in range(depth):
            self._submit(Command.PWRITE, ASK_BYTES)
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._ep0.fd:
                    return
            for number, result in self._aio.completions():
                if result < 0:
                    return
                if number in answers:
                    answers.remove(number)
                    answers.add(self._submit(Command.PREAD, REPLY_BYTES))
                    self._submit(Command.PWRITE, ASK_BYTES)
