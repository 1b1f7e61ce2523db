"""The gadget's link: the gadget tree, ep0 events, the AIO context, link epochs. What travels is a data plane's.

A link epoch begins at ENABLE and ends at the first sign of loss, whichever of ep0 and the endpoints shows it first;
transfers of an ended epoch are disowned, and `settled` says when the kernel has let go of the last of them: until then
nothing may be read into a slot again, because a late copy could still land there.

A successor that is born with the descriptors takes the link over: with a v1 host by halting bulk IN, so that the
host sets the interface anew; with a v0 host, which has no boundary in band, by re-enumerating. A gadget of
somebody else (gadget.usb.mounted) is not ours to re-enumerate: there the host finds nobody until it begins anew.
"""

import contextlib
import errno
import os
import select
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from bus.loop import Loop, Timer
from common import limits, trace
from common.errors import Gone, WireError
from common.log import Log
from gadget.usb import connection, kept, predecessor
from gadget.usb.aio import WRITES_BEFORE_WRAP, AioContext, Command
from gadget.usb.core import Pending, Send
from gadget.usb.endpoint import DEEP, Endpoint, open_file
from gadget.usb.functionfs import Ep0, EventType, FfsEvent
from gadget.usb.kept import Peer, PeerNote
from gadget.usb.mm_hold import Hold
from gadget.usb.mounted import MountedFfs
from gadget.usb.plane import BrokenLink, Endpoints, Plane, Receiver
from gadget.usb.plane_v0 import PlaneV0
from gadget.usb.plane_v1 import PlaneV1
from gadget.usb.tree import Tree

PACKET_BYTES = {"full-speed": 64, "high-speed": 512, "super-speed": 1024, "super-speed-plus": 1024}  # of bulk
_REBIND_S = 0.2  # out long enough for the host to see the disconnect
_LOOK_S = 0.002  # after a loss: f_fs tells of the ends from a worker, a moment later
_LINK_DOWN = (errno.EAGAIN, errno.ESHUTDOWN, errno.ENODEV, errno.ECONNRESET)
_COMMANDS: Final = (Command.PWRITE, Command.PREAD, Command.PWRITE, Command.PREAD)  # of ep1..ep4


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


class Handler(Receiver, Protocol):
    """Who is told. Called from the loop only."""

    def enabled(self) -> None: ...
    def lost(self, why: str) -> None: ...
    def broken(self, why: str) -> None: ...
    def setup(self, setup: Setup) -> None: ...


class Transport:
    """Owns the tree, ep0 and ep1..ep4. `fds`: what the predecessor left in the store; empty at a first start.

    `holds`: who holds the memory of predecessors, and so their transfers.
    """

    def __init__(
        self,
        loop: Loop,
        log: Log,
        tree: Tree,
        handler: Handler,
        fds: dict[str, int],
        holds: Callable[[bool], Sequence[Hold]] = lambda adopted: (),
    ) -> None:
        self._loop, self._log, self._tree, self._handler = loop, log, tree, handler
        self._enabled, self._doubtful = False, False
        self._disowned = 0
        self.mute = False  # the host is to find nobody, and to begin anew: its gadget is not ours to unbind
        self._armed = self._arming = False  # are reads queued; are they wanted
        self._overdue: Timer | None = None
        self._adopted = kept.whole(fds) and connection.is_still(tree, fds["ep0"])
        if self._adopted:
            self._ep0, self._note = Ep0(fds["ep0"]), kept.peer_of(fds)
            self._ep0.abandon()
        else:
            fds = self._make(holds(False), fds)
        self._aio = AioContext(4 * DEEP + limits.MESSAGE_READS)
        endpoints = [
            Endpoint(name, fds[name], command, self._aio)
            for name, command in zip(kept.ENDPOINT_NAMES[1:], _COMMANDS, strict=True)
        ]
        self._endpoints = Endpoints(*endpoints)
        self._busiest_first = endpoints[::-1]
        self._planes: dict[Peer, Plane] = {
            Peer.V0: PlaneV0(self._endpoints, handler),
            Peer.V1: PlaneV1(self._endpoints, handler),
        }
        self._peer = Peer.NONE
        self._left_by = self._note.read() if self._adopted else Peer.NONE
        self._early: list[FfsEvent] = []  # read before `bind`
        self._rebind = False
        if self._adopted:
            self._succeed(holds(True))
        self._unread = select.poll()
        self._unread.register(self._ep0.fd, select.POLLIN)
        loop.announce(self._aio.eventfd, self._transfers)

    def _make(self, holds: Sequence[Hold], left: dict[str, int]) -> dict[str, int]:
        if isinstance(self._tree, MountedFfs):
            for fd in left.values():
                os.close(fd)  # of one that was mounted there before
        predecessor.remove(self._tree, holds)
        self._tree.create()
        place = self._tree.mount_point
        self._ep0, self._note = Ep0.open(place, self._tree.identity), PeerNote.fresh()
        return {name: open_file(place / name) for name in kept.ENDPOINT_NAMES[1:]}

    def fds(self) -> tuple[int, ...]:
        """What a successor needs, in the order of kept.names()."""
        return (self._ep0.fd, *(endpoint.fd for endpoint in self._endpoints.all()), self._note.fd)

    # -- the link ------------------------------------------------------------------------------------------------
    def bind(self) -> None:
        """Show ourselves to the host, or take over the link that is there. Once; ep0 is not read before it."""
        self._loop.watch(self._ep0.fd, self._events)
        if not self._adopted:
            return self._tree.bind()
        if self._left_by is Peer.V0 and isinstance(self._tree, MountedFfs):
            self.mute = True  # of an ENABLE among these nobody knows what our predecessor sent after it
            return self._happened([event for event in self._early if event.type is EventType.SETUP])
        self._happened(self._early)
        if self._rebind and self._left_by is not Peer.V0:
            self._tree.bind()
        trace.point("usb.taking_over")
        configured = connection.configured(self._tree, self._endpoints.payloads_in.fd)
        how = "configured" if configured else "not configured"
        self._log.info(f"taking over the link: {how}, the host speaks {self._left_by.name}")
        if self._left_by is Peer.V0:
            self.reenumerate()
        elif self._left_by is Peer.NONE and configured:
            self._begin()  # nobody has moved data: the host may go on where it is

    def _succeed(self, holds: Sequence[Hold]) -> None:
        """End what the predecessor had under way; then a v1 host has to be told, if it has not noticed by itself."""
        if self._left_by is Peer.V0 and isinstance(self._tree, MountedFfs):
            with contextlib.suppress(OSError):
                self._endpoints.responses.halt()  # v0 reads there too: nothing more is to arrive while those reads end
        if holds:
            self._rebind = not predecessor.end(holds, self._tree, self._endpoints.payloads_out, self._left_by)
            self._early = self._ep0.events()
        noticed = any(event.type is EventType.ENABLE for event in self._early)
        if self._left_by is Peer.V1 and not noticed:
            self._halt()

    def _halt(self) -> None:
        """Tell a v1 host that it has to set its interface anew. Nothing of us or our predecessor is queued now.

        Only one endpoint is halted: the host would clear the first halt, and take the next one for another. A link that
        is down cannot be halted, and needs it not: its return is an ENABLE.
        """
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            self._endpoints.payloads_in.halt()

    def start_over(self, why: str) -> None:
        """The data of this epoch cannot be trusted any more. Raises Gone with a v1 host: our successor's halt tells."""
        if self._peer is Peer.V1:
            raise Gone(f"{why}: the data plane must start over")
        self._log.error(f"{why}: re-enumerating")
        self.reenumerate()

    def reenumerate(self) -> None:
        """Disconnect and come back: the boundary that v0 has. Everything outstanding is lost first.

        Of a gadget that is not ours we only vanish. Raises Gone if something is queued there: it ends with us.
        """
        if isinstance(self._tree, MountedFfs):
            if self._enabled:
                raise Gone("the link must start over, and its gadget is not ours to unbind")
            self.mute = True
            return
        self._tree.unbind()
        self._lose("re-enumerating")
        self._loop.after(_REBIND_S, self._tree.bind)

    @property
    def settled(self) -> bool:
        """Has the kernel let go of all transfers of ended epochs?"""
        return self._disowned == 0

    @property
    def speed(self) -> str:
        return connection.speed(self._tree, self._endpoints.payloads_in.fd)

    @property
    def awaits(self) -> str:
        """What it is that only others can do, of a gadget that is not ours; empty if nothing is."""
        if self._enabled or not isinstance(self._tree, MountedFfs):
            return ""
        if self.mute:
            return "a v0 host must begin anew: pull its cable, or unbind and bind the gadget"
        return f"{self._tree.mount_point}: waits for its gadget to be bound, and for a host"

    def _events(self) -> None:
        self._happened(self._ep0.events())

    def _happened(self, events: Sequence[FfsEvent]) -> None:
        doubtful, self._doubtful = self._doubtful, False
        for event in events:
            if event.type is EventType.ENABLE:
                self._lose("enabled anew")
                self._begin()
                if doubtful:
                    self.start_over("a transfer of the last epoch may have gone into this one")
            elif event.type in (EventType.DISABLE, EventType.UNBIND):
                self._lose(event.type.name.lower())
            elif event.type is EventType.SETUP:
                self._handler.setup(Setup(self._ep0, event))

    def _begin(self) -> None:
        self._enabled, self._armed, self._arming, self._peer = True, False, False, Peer.NONE
        self.mute = False
        if not self.settled:
            self._overdue = self._loop.after(limits.LET_GO_S, self._not_settled)
        self._handler.enabled()

    def _not_settled(self) -> None:
        self._transfers()  # some end without a word, and the last look was long before
        if self._enabled and not self.settled:
            # We were stopped between looking at ep0 and submitting: they lie in the new epoch and wait for its data.
            self._log.error(f"{self._disowned} transfers of an ended epoch do not end: re-enumerating")
            self.reenumerate()

    def _lose(self, why: str) -> None:
        if not self._enabled:
            return
        self._enabled = False
        if self._overdue is not None:
            self._overdue.cancel()
        self._disowned += sum(endpoint.forget() for endpoint in self._endpoints.all())
        self._handler.lost(why)
        self._loop.after(_LOOK_S, lambda: self._look(_LOOK_S))

    def _look(self, after_s: float) -> None:
        """The ends of some transfers tell nobody (plane_v1): those of an ended epoch are looked for."""
        if not self.settled:
            self._transfers()
        if not self.settled:
            later_s = min(2 * after_s, limits.LET_GO_S)
            self._loop.after(later_s, lambda: self._look(later_s))

    def look(self) -> None:
        """From time to time: a transfer that failed while the link is up may have told nobody."""
        self._transfers()

    # -- data ----------------------------------------------------------------------------------------------------
    @property
    def data_plane(self) -> Peer:
        """Which wire is spoken in this epoch; NONE before its host has configured us."""
        return self._peer

    def begin_data(self, peer: Peer, wire_epoch: int = 0) -> None:
        """The host of this link epoch speaks `peer`; `wire_epoch` is v1's."""
        self._note.write(peer)
        self._peer = peer
        # The real packet size: rounding 512 bytes up to 1024 at high speed would wait for a packet that never comes.
        self._planes[peer].begin(PACKET_BYTES.get(self.speed, 512), wire_epoch)

    def arm(self) -> None:
        """Keep reads for what the host sends queued, once the kernel has let go of the last epoch's buffers."""
        self._arming = True
        self._arm_if_settled()

    def _arm_if_settled(self) -> None:
        if self._arming and not self._armed and self._enabled and self.settled:
            self._armed = True
            self._planes[self._peer].arm()

    def send(self, send: Send, epoch: int, address: int) -> None:
        if self._enabled:
            self._planes[self._peer].send(send, epoch, address)

    def fill(self, pending: Pending, epoch: int, address: int, size_bytes: int) -> None:
        if self._enabled:
            self._planes[self._peer].fill(pending, epoch, address, size_bytes)

    def submit(self) -> None:
        """Hand what is queued to the kernel."""
        if not self._enabled or self._peer is Peer.NONE:
            return
        if self._aio.writes >= WRITES_BEFORE_WRAP:
            raise Gone("a kernel counter of this process is half full: a successor begins with a new one")
        if self._peer is Peer.V0 and self._unread.poll(0):
            return  # an event may end this epoch: first hear it
        self._planes[self._peer].pump()
        trace.point("usb.transfers.submitted")
        if self._peer is Peer.V0 and self._unread.poll(0):
            self._doubtful = True  # which epoch did those go into? (v1 frames say theirs)

    # -- completions ---------------------------------------------------------------------------------------------
    def _transfers(self) -> None:
        """What is to be submitted then is, before the loop waits (`submit`)."""
        trace.point("usb.transfers.ended")
        for number, result in self._aio.completions(reset=False):
            self._completed(number, result)
        self._arm_if_settled()

    def _completed(self, number: int, result: int) -> None:
        for endpoint in self._busiest_first:
            transfer = endpoint.submitted.pop(number, None)
            if transfer is None:
                continue
            if -result in _LINK_DOWN:
                return self._lose(f"{endpoint.name}: {errno.errorcode[-result]}")
            try:
                if result < 0:
                    # ENOMEM (64 KiB is one kmalloc), EFAULT, ...: the link is up: no ENABLE would come by itself.
                    raise BrokenLink(f"{endpoint.name}: {os.strerror(-result)}")
                return self._planes[self._peer].ended(endpoint, transfer, result)
            except BrokenLink as error:
                why = str(error)
            except WireError as error:
                self._handler.broken(str(error))
                why = f"the host broke the protocol: {error}"
            return self.start_over(why)
        self._disowned -= 1
