"""Role `usb` of the gadget: the one process that talks USB. Joins UsbCore to endpoints, queues and session.

What may be on the wire, and whose answer is whose, is gadget.usb.core's; bytes and endpoints are transport's; ep0 is
handshake's. Here are the arenas of the queues, and the lanes.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from bus.arena import Arena
from bus.books import ledger_of
from bus.envelope import Body, Kind
from bus.keeping import Keeping
from bus.role import Birth, Role
from bus.runtime import Runtime
from common import follow, limits, trace
from common.errors import MALFORMED, Gone, WireError
from common.refusals import Refusals
from common.wire import ExportRecord, Response
from common.wire_v1 import Record
from gadget.usb import kept, mm_hold, predecessor, udc
from gadget.usb.core import Action, Copy, Done, Fill, Pending, Release, UsbCore
from gadget.usb.handshake import Configured, Handshake
from gadget.usb.kept import Peer
from gadget.usb.link import Event, Link, Step
from gadget.usb.mm_hold import Hold
from gadget.usb.transport import Setup, Transport
from gadget.usb.tree import tree_of

_LINK_NAME = {Link.ABSENT: "absent", Link.HANDSHAKE: "absent", Link.ONLINE: "online", Link.PARKED: "parked"}


class Usb:
    """Handlers of the gadget's usb role."""

    def __init__(self, role: Role) -> None:
        self._role, self._core = role, UsbCore(lambda export_id: ledger_of(role.runtime, export_id))
        self._arenas: dict[tuple[str, int], Arena] = {}
        self._released: list[tuple[str, int]] = []  # unmapped once the kernel has let go of all old transfers
        self._completions: dict[str, list[list[int]]] = {}
        self._handshake = Handshake()
        self._heard_at = 0.0
        self._counts = {"requests": 0, "responses": 0, "epochs": 0}
        self._refusals = Refusals(role.log, role.loop.now)
        self._since = datetime.now(UTC)
        role.status = self._status
        controller = "" if role.args.get("ffs_dir") else udc.choose(role.args.get("udc"))
        tree = tree_of(role.runtime, role.args, controller)
        self._transport = Transport(role.loop, role.log, tree, self, role.birth.fds, self._holds)
        self._handshake.mute = lambda: self._transport.mute
        self._keeping = Keeping(role, kept.names(), self._transport.fds())
        self._queues = role.serve("data", self._queue_arrived, self._from_queue)
        self._session = role.serve("session", self._session_arrived, self._from_session)
        role.loop.before_wait(self._flush)
        role.loop.every(limits.LINK_SILENCE_S / 3, self._listen)

    def _holds(self, adopted: bool) -> Sequence[Hold]:
        look = mm_hold.left if adopted else mm_hold.found
        return look(self._role.runtime, self._role.name, self._role.generation)

    # -- the link (called by the transport) ----------------------------------------------------------------------
    def enabled(self) -> None:
        """The host chose our configuration: nothing from before counts."""
        self._handshake.forget()
        self._event(Event.ENABLED)

    def lost(self, why: str) -> None:
        """Disabled, unbound, or an endpoint said so."""
        if self._core.link is not Link.ABSENT:
            self._role.log.info(f"link lost: {why}")
        self._event(Event.LOST)

    def _event(self, event: Event) -> None:
        before = self._core.link
        steps = self._core.on(event)
        for step in steps:
            self._step(step)
        if event is Event.ENABLED:
            self._heard_at = self._role.loop.now()
        if self._core.link is not before:
            self._since = datetime.now(UTC)
            self._role.log.info(
                f"link {before.name} -> {self._core.link.name} ({event.name}), epoch {self._core.epoch}"
            )
            self._tell_link()

    def _step(self, step: Step) -> None:
        if step is Step.NEW_EPOCH:
            self._counts["epochs"] += 1
            self._do(self._core.releasable())
        elif step is Step.ARM:
            self._transport.arm()
        elif step is Step.ASK_SESSION:
            self._tell_config()
        elif step is Step.REENUMERATE:
            self._handshake.forget()
            self._role.log.info("a host configured us anew after data had moved: re-enumerating")
            self._transport.reenumerate()
        # Step.DISPATCH: _flush does it, before the loop waits

    def _heard(self) -> None:
        self._heard_at = self._role.loop.now()
        if self._core.link is Link.PARKED:
            self._event(Event.HEARD)

    def _listen(self) -> None:
        self._transport.look()
        silent = self._role.loop.now() - self._heard_at > limits.LINK_SILENCE_S
        if silent and self._core.link is Link.ONLINE:
            self._event(Event.SILENT)

    # -- ep0 and the session -------------------------------------------------------------------------------------
    def setup(self, setup: Setup) -> None:
        """One vendor request of the host."""
        try:
            config = self._handshake.answer(setup)
        except WireError as error:
            self._refusals.count("control", str(error))
            return
        self._heard()
        if config is not None:
            self._configured(config)

    def _configured(self, config: Configured) -> None:
        before = self._handshake.config
        if self._core.link is Link.ABSENT:
            # We took over from a dead predecessor and wait for the host to set its interface anew: a v1 host will.
            self._role.log.warning(f"a set of exports before the link began anew, from a {config.peer.name} host")
            if config.peer is Peer.V0:
                self._transport.reenumerate()
                self._tell_awaited()
        elif config.peer is Peer.V1 and before is not None and before.epoch == config.epoch:
            self._take(config)
            self._event(Event.UPDATED)
        elif config.peer is Peer.V1 and self._core.data_moved:
            self._transport.start_over("the host began a new epoch without setting its interface anew")
        else:
            self._take(config)
            trace.point("usb.configured")
            self._event(Event.CONFIGURED)
            if self._core.link is Link.HANDSHAKE:
                self._core.v0 = config.peer is Peer.V0
                self._transport.begin_data(config.peer, config.epoch)

    def _take(self, config: Configured) -> None:
        self._handshake.take(config)
        self._core.host_boot = config.boot_id
        self._core.eject(config.ejected, config.flushed)
        self._handshake.draining = lambda: self._core.on_wire(config.ejected)

    def _session_arrived(self, role: str, generation: int, hello: Body) -> None:
        self._tell_link()
        self._tell_config()

    def _tell_link(self) -> None:
        note = {
            "note": "link",
            "state": _LINK_NAME[self._core.link],
            "speed": self._transport.speed,
            "peer": "v1" if self._transport.data_plane is Peer.V1 else "v0",
            **({"reason": awaits} if (awaits := self._transport.awaits) else {}),
        }
        self._session.send("session", Kind.NOTE, note)

    def _tell_awaited(self) -> None:
        """No state of the link has changed, but that it waits for somebody else is to be seen."""
        if self._transport.awaits:
            self._tell_link()

    def _tell_config(self) -> None:
        note = self._handshake.note()
        if note is not None:
            self._session.send("session", Kind.NOTE, note)

    def _from_session(self, role: str, kind: Kind, body: Body) -> None:
        try:
            session_id, configured = int(body["session_id"]), int(body["configured"])
            agreed = frozenset(int(n) for n in body["agreed"])
        except MALFORMED:
            raise WireError(f"{kind} from the session is not a session note") from None
        known = self._handshake.session_id
        if known is None:
            self._handshake.session_id = session_id
            self._transport.bind()  # not before: a STATUS must carry the session id
            self._tell_awaited()
            self._role.ready()
        elif known != session_id:
            raise Gone(f"the session is {session_id:#x} now, was {known:#x}: the host must see it")
        if self._handshake.agree(configured, agreed):
            self._core.agree(agreed)
            self._event(Event.AGREED)

    # -- queues --------------------------------------------------------------------------------------------------
    def _queue_arrived(self, role: str, generation: int, hello: Body) -> None:
        try:
            record = ExportRecord(int(hello["export_id"]), int(hello["block_size"]), int(hello["size_bytes"]))
            depth, slot_bytes = int(hello["depth"]), int(hello["slot_bytes"])
        except MALFORMED:
            raise WireError(f"HELLO of {role} lacks a field") from None
        try:
            arena = Arena.attach(self._role.runtime, role, generation)
        except Gone as error:
            self._role.log.warning(f"{error}: waiting for its successor")
            return
        if depth * slot_bytes > arena.size_bytes:
            raise WireError(f"{role}: {depth} slots of {slot_bytes} bytes do not fit its arena")
        self._core.queue_arrived(role, generation, record, depth, slot_bytes)
        self._arenas[role, generation] = arena
        self._completions[role] = []
        self._do(self._core.releasable())
        self._role.log.info(f"{role} is here, generation {generation}")

    def _from_queue(self, role: str, kind: Kind, body: Body) -> None:
        if kind is not Kind.REQUESTS:
            raise WireError(f"{kind} is not for usb")
        trace.point("usb.requests.received")
        self._do(self._core.ask(role, self._queues.generation_of(role) or 0, body))

    # -- data (called by the transport, and before the loop waits) -----------------------------------------------
    def message(self, data: bytes) -> None:
        """v0: a Response from interrupt OUT. WireError goes to the transport."""
        response = Response.decode(data)
        self._counts["responses"] += 1
        self._heard()
        trace.point("usb.answer.arrived")
        self._do(self._core.answered(response))

    def broken(self, why: str) -> None:
        """The host broke the protocol. The link starts over: with a v1 host by our end, and the count goes with us."""
        self._refusals.count("message", why)

    def records(self, placed: list[tuple[Record, int]], frame: memoryview) -> None:
        """v1: Responses, and fragments of their data in `frame`. WireError goes to the transport."""
        self._heard()
        for record, where in placed:
            trace.point("usb.answer.arrived")
            for action in self._core.arrived(record):
                if type(action) is Copy:
                    self._copy(action, frame[where : where + action.size_bytes])
                else:
                    self._do((action,))
            if record.data_offset == 0:
                self._counts["responses"] += 1

    def _copy(self, copy: Copy, data: memoryview) -> None:
        pending = copy.pending
        start = pending.offset + copy.offset
        self._arenas[pending.export, pending.arena].memory[start : start + copy.size_bytes] = data

    def filled(self, pending: Pending, epoch: int) -> None:
        """A read payload is in its slot."""
        self._do(self._core.filled(pending, epoch))

    def left(self, pending: Pending, epoch: int) -> None:
        """A write payload has left its slot."""
        self._do(self._core.left(pending, epoch))

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if type(action) is Done:
                if follow.on:
                    self._follow(action.export, action.arena, action.sequence, "answered", status=action.status)
                if self._queues.generation_of(action.export) == action.arena:
                    self._completions[action.export].append([action.sequence, action.status])
            elif isinstance(action, Fill):
                address = self._address(action.pending)
                self._transport.fill(action.pending, self._core.epoch, address, action.payload_bytes)
            elif isinstance(action, Release):
                self._released.append((action.export, action.arena))

    def _flush(self) -> None:
        if self._transport.settled:
            while self._released:
                self._arenas.pop(self._released.pop(), None)
            if self._core.v0:
                self._do(self._core.unspeakable())
            for send in self._core.dispatch():
                self._counts["requests"] += 1
                trace.point("usb.request.sending")
                if follow.on:
                    pending = send.pending
                    number = pending.request.request_id
                    self._follow(pending.export, pending.arena, pending.sequence, "sent", wire=f"{number:08x}")
                self._transport.send(send, self._core.epoch, self._address(send.pending))
        self._transport.submit()
        for role, batch in self._completions.items():
            if batch:
                trace.point("usb.completions.sending")
                self._completions[role] = []
                for start in range(0, len(batch), limits.MAX_BATCH):
                    # False: that queue is dead. The kernel reissues what it had.
                    self._queues.send(role, Kind.COMPLETIONS, batch[start : start + limits.MAX_BATCH])

    def _follow(self, role: str, generation: int, sequence: int, what: str, **fields: int | str) -> None:
        export_id = self._core.export_id(role)
        follow.step(follow.io_id(export_id, follow.request_id(generation, sequence)), what, **fields)

    def _address(self, pending: Pending) -> int:
        return self._arenas[pending.export, pending.arena].address + pending.offset

    def _status(self) -> dict[str, Any]:
        return {
            "link": _LINK_NAME[self._core.link],
            "peer": self._transport.data_plane.name.lower(),
            "stage": self._core.link.name.lower(),
            "since": self._since.isoformat(timespec="milliseconds"),
            "exports": {role: {"waiting": w, "on_wire": n} for role, (w, n) in self._core.counts().items()},
            **self._counts,
            **self._refusals.status(),
        }


def prepare(birth: Birth) -> Birth:
    """Before we have a thread or a descriptor of our own: see that our death does not end our memory."""
    return replace(birth, fds=mm_hold.hold(birth.runtime, birth.role, birth.generation, birth.fds))


def start(role: Role) -> None:
    Usb(role)


def retire(runtime: Runtime, role: str, args: dict[str, Any]) -> None:
    """Take the gadget away: unbind, unmount, remove the configfs tree."""
    predecessor.remove(tree_of(runtime, args), mm_hold.found(runtime, role))
