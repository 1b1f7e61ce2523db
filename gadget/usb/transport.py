"""Bytes between UsbCore's actions and FunctionFS: the gadget tree, ep0 events, four endpoints, link epochs.

Knows nothing of exports. A link epoch begins at ENABLE and ends at the first sign of loss, whichever of ep0 and the
endpoints shows it first; transfers of an ended epoch are disowned, and `settled` says when the kernel has let go of the
last of them: until then nothing may be read into a slot again, because a late copy could still land there.
"""

import errno
import mmap
import os
from collections.abc import Callable
from ctypes import addressof, c_char
from typing import Any, Protocol

from bus.loop import Loop
from bus.runtime import Runtime
from common import limits
from common.errors import Gone
from common.log import Log
from common.wire import MESSAGE_BYTES
from gadget.usb import udc
from gadget.usb.aio import WRITES_BEFORE_WRAP, AioContext, Command
from gadget.usb.configfs import GadgetTree
from gadget.usb.core import Pending
from gadget.usb.endpoint import DEEP, Endpoint, Transfer, pieces
from gadget.usb.functionfs import Ep0, EventType, FfsEvent

PACKET_BYTES = {"full-speed": 64, "high-speed": 512, "super-speed": 1024, "super-speed-plus": 1024}  # of bulk
_BUFFER = 1024  # bytes for one Response: a whole packet at every speed
_SLOT = 64  # bytes for each outgoing message
_REBIND_S = 0.2  # out long enough for the host to see the disconnect
VENDOR_ID, PRODUCT_ID = 0x1D6B, 0x0104  # Linux Foundation, multifunction composite gadget


class Setup:
    """One SETUP request on ep0, to be replied to, read, or stalled: exactly one of them."""

    def __init__(self, ep0: Ep0, event: FfsEvent) -> None:
        self._ep0, self._event = ep0, event
        self.request_type, self.request, self.length = event.request_type, event.request, event.length

    def reply(self, data: bytes) -> None:
        self._ep0.reply(self._event, data)

    def read(self) -> bytes:
        return self._ep0.read(self._event)

    def stall(self) -> None:
        self._ep0.stall(self._event)


class Handler(Protocol):
    """Who is told. Called from the loop only."""

    def enabled(self) -> None: ...
    def lost(self, why: str) -> None: ...
    def setup(self, setup: Setup) -> None: ...
    def message(self, data: bytes) -> None: ...
    def filled(self, pending: Pending, epoch: int) -> None: ...
    def left(self, pending: Pending, epoch: int) -> None: ...


def tree_of(runtime: Runtime, args: dict[str, Any], controller: str = "") -> GadgetTree:
    """The gadget tree of an instance, from the role's arguments. To remove it needs no controller: it may be gone."""
    return GadgetTree(
        name=f"replug-{runtime.instance}",
        udc=controller,
        vendor_id=int(args.get("vendor_id") or VENDOR_ID),
        product_id=int(args.get("product_id") or PRODUCT_ID),
        serial=str(args.get("serial") or "replug"),
        product="replug",
        mount_point=runtime.root / "ffs",
    )


class Transport:
    """Owns the tree, ep0 and ep1..ep4. A fresh one starts from nothing: v0 cannot go on in band after a death."""

    def __init__(self, loop: Loop, log: Log, tree: GadgetTree, handler: Handler) -> None:
        self._loop, self._log, self._tree, self._handler = loop, log, tree, handler
        tree.remove()
        tree.create()
        self._ep0 = Ep0(tree.mount_point)
        self._aio = AioContext(4 * DEEP + limits.MESSAGE_READS)
        paths = [tree.mount_point / f"ep{number}" for number in (1, 2, 3, 4)]
        self._requests = Endpoint(paths[0], Command.PWRITE, self._aio)
        self._responses = Endpoint(paths[1], Command.PREAD, self._aio)
        self._payloads_in = Endpoint(paths[2], Command.PWRITE, self._aio)
        self._payloads_out = Endpoint(paths[3], Command.PREAD, self._aio)
        self._endpoints = (self._requests, self._responses, self._payloads_in, self._payloads_out)
        self._ended: dict[Endpoint, Callable[[Transfer, int], None]] = {
            self._requests: lambda transfer, result: self._free.append(transfer.address),
            self._responses: self._response,
            self._payloads_in: self._left,
            self._payloads_out: self._payload,
        }
        self._messages = mmap.mmap(-1, _MESSAGE_SLOTS * _SLOT + limits.MESSAGE_READS * _BUFFER)
        self._base = addressof(c_char.from_buffer(self._messages))
        self._free: list[int] = []
        self._enabled = False
        self._disowned = 0
        self._armed = False
        self._packet_bytes = 512
        loop.watch(self._ep0.fd, self._events)
        loop.watch(self._aio.eventfd, self._transfers)

    # -- the link ------------------------------------------------------------------------------------------------
    def bind(self) -> None:
        """Show ourselves to the host."""
        self._tree.bind()

    def reenumerate(self) -> None:
        """Disconnect and come back: the boundary that v0 has. Everything outstanding is lost first."""
        self._tree.unbind()
        self._lose("re-enumerating")
        self._loop.after(_REBIND_S, self._tree.bind)

    @property
    def settled(self) -> bool:
        """Has the kernel let go of all transfers of ended epochs?"""
        return self._disowned == 0

    @property
    def speed(self) -> str:
        return udc.speed(self._tree.udc)

    def arm(self) -> None:
        """Keep reads for Responses queued, as soon as the kernel has let go of the last epoch's buffers."""
        self._armed = False
        self._arm_when_settled()

    def _arm_when_settled(self) -> None:
        if self._armed or not self._enabled or not self.settled:
            return
        self._armed = True
        for index in range(limits.MESSAGE_READS):
            self._queue_response_read(self._base + _MESSAGE_SLOTS * _SLOT + index * _BUFFER)
        self.submit()

    def _events(self) -> None:
        for event in self._ep0.events():
            if event.type is EventType.ENABLE:
                self._lose("enabled anew")
                self._begin()
            elif event.type in (EventType.DISABLE, EventType.UNBIND):
                self._lose(event.type.name.lower())
            elif event.type is EventType.SETUP:
                self._handler.setup(Setup(self._ep0, event))

    def _begin(self) -> None:
        self._enabled = True
        # The real packet size: rounding 512 bytes up to 1024 at high speed would wait for a packet that never comes.
        self._packet_bytes = PACKET_BYTES.get(self.speed, 512)
        self._free = [self._base + index * _SLOT for index in range(_MESSAGE_SLOTS)]
        self._handler.enabled()

    def _lose(self, why: str) -> None:
        if not self._enabled:
            return
        self._enabled = False
        self._disowned += sum(endpoint.forget() for endpoint in self._endpoints)
        self._handler.lost(why)

    # -- sending -------------------------------------------------------------------------------------------------
    def send_message(self, data: bytes) -> None:
        """One Request on interrupt IN."""
        if not self._enabled:
            return
        address = self._free.pop()
        offset = address - self._base
        self._messages[offset : offset + len(data)] = data
        self._requests.queue([Transfer(None, address, len(data), len(data))])

    def send_payload(self, pending: Pending, epoch: int, address: int, size_bytes: int) -> None:
        """A write's payload on bulk IN, behind those of earlier Requests; `left` tells when the slot is free of it."""
        if self._enabled:
            self._payloads_in.queue(pieces((pending, epoch), address, size_bytes, self._packet_bytes))

    def receive_payload(self, pending: Pending, epoch: int, address: int, size_bytes: int) -> None:
        """A read's payload from bulk OUT, behind those of earlier Responses; `filled` tells when it is there."""
        if self._enabled:
            self._payloads_out.queue(pieces((pending, epoch), address, size_bytes, self._packet_bytes))

    def submit(self) -> None:
        """Hand what is queued to the kernel."""
        if not self._enabled:
            return
        if self._aio.writes >= WRITES_BEFORE_WRAP:
            raise Gone("a kernel counter of this process is half full: a successor begins with a new one")
        for endpoint in self._endpoints:
            endpoint.pump()

    # -- completions ---------------------------------------------------------------------------------------------
    def _transfers(self) -> None:
        for number, result in self._aio.completions():
            for endpoint in self._endpoints:
                transfer = endpoint.ended(number)
                if transfer is not None:
                    self._transfer(endpoint, transfer, result)
                    break
            else:
                self._disowned -= 1
        self._arm_when_settled()
        self.submit()

    def _transfer(self, endpoint: Endpoint, transfer: Transfer, result: int) -> None:
        if -result in _LINK_DOWN:
            return self._lose(f"{endpoint.name}: {errno.errorcode[-result]}")
        if result < 0:
            # ENOMEM (64 KiB is one kmalloc), EFAULT, ...: the link is up, so no ENABLE would ever come by itself.
            self._log.error(f"{endpoint.name}: {os.strerror(-result)}: starting the link over")
            return self.reenumerate()
        if endpoint is not self._responses and result != transfer.expected:
            self._log.error(f"{endpoint.name}: {result} bytes, not {transfer.expected}: the host broke the protocol")
            return self.reenumerate()
        self._ended[endpoint](transfer, result)

    def _response(self, transfer: Transfer, result: int) -> None:
        offset = transfer.address - self._base
        data = self._messages[offset : offset + result]
        self._queue_response_read(transfer.address)
        self._handler.message(data)

    def _queue_response_read(self, address: int) -> None:
        self._responses.queue([Transfer(None, address, _BUFFER, MESSAGE_BYTES)])

    def _left(self, transfer: Transfer, result: int) -> None:
        if transfer.last and transfer.key is not None:
            self._handler.left(*transfer.key)

    def _payload(self, transfer: Transfer, result: int) -> None:
        if transfer.last and transfer.key is not None:
            self._handler.filled(*transfer.key)


# Every request of every export may be waiting at once: a queue has at most QUEUE_DEPTH tags, and its dead predecessor's
# orphans as many again.
_MESSAGE_SLOTS = 2 * limits.MAX_EXPORTS * limits.QUEUE_DEPTH
_LINK_DOWN = (errno.EAGAIN, errno.ESHUTDOWN, errno.ENODEV, errno.ECONNRESET)
