"""A plain smoo v0 gadget for tests of the host: blocking FunctionFS files, no ublk, no bus. Says what it is told to.

Requests may be sent raw, out of bounds or malformed; the answers are returned, not judged. One thread answers ep0.
"""

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable
from pathlib import Path

from common.wire import ConfigExports, Control, Ident, Op, Request, Response, Status, answers
from gadget.usb import udc
from gadget.usb.configfs import GadgetTree
from gadget.usb.functionfs import Ep0, EventType, FfsEvent

SESSION_ID = 0x5EED_0001
_READ_BYTES = 16384  # whole packets, and as much as one kmalloc gives easily
_MESSAGE_READ_BYTES = 1024


class V0Gadget:
    """A bound gadget. `requests` and payloads go out by `send`; `answer` takes what the host sends."""

    def __init__(self, mount_point: Path) -> None:
        self.session_id = SESSION_ID
        self.exports: ConfigExports | None = None
        self.configurations = 0
        self.statuses = 0
        self.enables = 0
        self._tree = GadgetTree("test-v0", udc.choose(None), 0x1D6B, 0x0104, "v0test", "v0", mount_point)
        self._tree.create()
        self._ep0 = Ep0.open(mount_point)
        self._fds = [os.open(mount_point / f"ep{number}", os.O_RDWR | os.O_CLOEXEC) for number in (1, 2, 3, 4)]
        self._requests, self._responses, self._payloads_in, self._payloads_out = self._fds
        self._running = True
        self._thread = threading.Thread(target=self._serve_ep0, daemon=True)
        self._thread.start()
        self._tree.bind()

    def close(self) -> None:
        self._running = False
        self._thread.join(5)
        for fd in (*self._fds, self._ep0.fd):
            os.close(fd)
        self._tree.remove()

    def unplug(self) -> None:
        self._tree.unbind()
        self.exports = None

    def plug(self) -> None:
        self._tree.bind()

    def wait_configured(self, more_than: int = 0, deadline_s: float = 60) -> None:
        """Until CONFIG_EXPORTS came more often than `more_than`, and a STATUS after it."""
        until(lambda: self.configurations > more_than, f"CONFIG_EXPORTS number {more_than + 1}", deadline_s)
        seen = self.statuses
        until(lambda: self.statuses > seen, "a STATUS after CONFIG_EXPORTS", deadline_s)

    # -- data ----------------------------------------------------------------------------------------------------
    def send(self, request: Request, payload: bytes = b"") -> None:
        """Put a Request on interrupt IN and a write's payload on bulk IN. Blocks until the host has both."""
        self.send_raw(request.encode())
        if payload:
            os.write(self._payloads_in, payload)

    def send_raw(self, data: bytes) -> None:
        os.write(self._requests, data)

    def response(self) -> Response:
        return Response.decode(os.read(self._responses, _MESSAGE_READ_BYTES))

    def payload(self, size_bytes: int) -> bytes:
        data = b""
        while len(data) < size_bytes:
            data += os.read(self._payloads_out, min(_READ_BYTES, size_bytes - len(data)))
        return data

    def ask(self, op: Op, lba: int = 0, blocks: int = 0, payload: bytes = b"", request_id: int = 1) -> Response:
        """One request and its Response; a read's payload is left for `payload`."""
        assert self.exports is not None
        request = Request(op, request_id, self.exports.exports[0].export_id, lba, blocks)
        self.send(request, payload)
        response = self.response()
        assert answers(response, request)
        return response

    # -- ep0 -----------------------------------------------------------------------------------------------------
    def _serve_ep0(self) -> None:
        poll = select.poll()
        poll.register(self._ep0.fd, select.POLLIN)
        while self._running:
            if poll.poll(100):
                for event in self._ep0.events():
                    self._event(event)

    def _event(self, event: FfsEvent) -> None:
        if event.type is EventType.ENABLE:
            self.enables += 1
        if event.type is not EventType.SETUP:
            return
        if event.request == Control.IDENT:
            self._ep0.reply(event, Ident().encode())
        elif event.request == Control.STATUS:
            count = len(self.exports.exports) if self.exports else 0
            self._ep0.reply(event, Status(self.exports is not None, count, self.session_id).encode())
            self.statuses += 1
        elif event.request == Control.CONFIG_EXPORTS:
            self.exports = ConfigExports.decode(self._ep0.read(event))
            self.configurations += 1
        else:
            self._ep0.stall(event)


def until(condition: Callable[[], object], what: str, deadline_s: float = 60) -> None:
    """Wait for what nothing announces; at the deadline says what was waited for."""
    deadline = time.monotonic() + deadline_s
    while True:
        with contextlib.suppress(OSError):
            if condition():
                return
        assert time.monotonic() < deadline, f"{what}: not within {deadline_s:g} s"
        time.sleep(0.02)
