"""Role `usb` of the gadget: the one process that talks USB. Joins UsbCore to endpoints, queues and session.

What may be on the wire, and whose answer is whose, is gadget.usb.core's; bytes and endpoints are transport's.
Here are the ep0 requests, the arenas of the queues, and the lanes.
"""

from datetime import UTC, datetime
from typing import Any

from bus.arena import Arena
from bus.envelope import Body, Kind
from bus.role import Role
from bus.runtime import Runtime
from common import limits, wire
from common.errors import Gone, WireError
from common.wire import CONTROL_TYPE, ConfigExports, Control, ExportRecord, Ident, Response, Status
from gadget.usb import udc
from gadget.usb.core import Action, Done, Event, Fill, Link, Pending, Release, Send, Step, UsbCore
from gadget.usb.transport import Setup, Transport, tree_of

_LINK_NAME = {Link.ABSENT: "absent", Link.HANDSHAKE: "absent", Link.ONLINE: "online", Link.PARKED: "parked"}


class Usb:
    """Handlers of the gadget's usb role."""

    def __init__(self, role: Role) -> None:
        self._role, self._core = role, UsbCore()
        self._arenas: dict[tuple[str, int], Arena] = {}
        self._released: list[tuple[str, int]] = []  # unmapped once the kernel has let go of all old transfers
        self._completions: dict[str, list[list[int]]] = {}
        self._session_id: int | None = None
        self._config: bytes | None = None  # the last CONFIG_EXPORTS of this link epoch
        self._config_count = 0
        self._agreed: frozenset[int] = frozenset()
        self._active = False
        self._heard_at = 0.0
        self._counts = {"requests": 0, "responses": 0, "refused": 0, "epochs": 0}
        self._since = datetime.now(UTC)
        role.status = self._status
        tree = tree_of(role.runtime, role.args, udc.choose(role.args.get("udc")))
        self._transport = Transport(role.loop, role.log, tree, self)
        self._queues = role.serve("data", self._queue_arrived, self._from_queue)
        self._session = role.serve("session", self._session_arrived, self._from_session)
        role.loop.before_wait(self._flush)
        role.loop.every(limits.LINK_SILENCE_S / 3, self._listen)

    # -- the link (called by the transport) ----------------------------------------------------------------------
    def enabled(self) -> None:
        """The host chose our configuration: nothing from before counts."""
        self._config, self._agreed, self._active = None, frozenset(), False
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
            self._heard_at = self._role.loop.now()
            self._transport.arm()
        elif step is Step.ASK_SESSION:
            self._tell_config()
        elif step is Step.REENUMERATE:
            self._config = None
            self._role.log.info("a host configured us anew after data had moved: re-enumerating")
            self._transport.reenumerate()
        # Step.DISPATCH: _flush does it, before the loop waits

    def _heard(self) -> None:
        self._heard_at = self._role.loop.now()
        if self._core.link is Link.PARKED:
            self._event(Event.HEARD)

    def _listen(self) -> None:
        silent = self._role.loop.now() - self._heard_at > limits.LINK_SILENCE_S
        if silent and self._core.link is Link.ONLINE:
            self._event(Event.SILENT)

    # -- ep0 -----------------------------------------------------------------------------------------------------
    def setup(self, setup: Setup) -> None:
        """One vendor request. What we do not know, or cannot answer yet, is stalled: the host asks again."""
        try:
            request = Control(setup.request)
        except ValueError:
            return setup.stall()
        if setup.request_type != CONTROL_TYPE[request]:
            return setup.stall()
        if request is Control.IDENT:
            setup.reply(Ident().encode())
        elif request is Control.STATUS:
            self._answer_status(setup)
        else:
            self._take_config(setup)

    def _answer_status(self, setup: Setup) -> None:
        if self._session_id is None:
            return setup.stall()
        self._heard()
        setup.reply(Status(self._active, len(self._agreed), self._session_id).encode())

    def _take_config(self, setup: Setup) -> None:
        if setup.length > wire.CONFIG_MAX_BYTES:
            return self._refuse(setup, f"CONFIG_EXPORTS of {setup.length} bytes is more than {wire.CONFIG_MAX_BYTES}")
        data = setup.read()
        try:
            ConfigExports.decode(data)
        except WireError as error:
            return self._refuse(None, str(error))
        self._heard()
        self._config, self._active = data, False
        self._config_count += 1
        self._event(Event.CONFIGURED)

    def _refuse(self, setup: Setup | None, why: str) -> None:
        self._counts["refused"] += 1
        self._role.log.warning(f"refused: {why}")
        if setup is not None:
            setup.stall()

    # -- the session ---------------------------------------------------------------------------------------------
    def _session_arrived(self, role: str, generation: int, hello: Body) -> None:
        self._tell_link()
        self._tell_config()

    def _tell_link(self) -> None:
        note = {"note": "link", "state": _LINK_NAME[self._core.link], "speed": self._transport.speed}
        self._session.send("session", Kind.NOTE, note)

    def _tell_config(self) -> None:
        if self._config is not None:
            note = {"note": "config_exports", "data": self._config, "count": self._config_count}
            self._session.send("session", Kind.NOTE, note)

    def _from_session(self, role: str, kind: Kind, body: Body) -> None:
        try:
            session_id, configured = int(body["session_id"]), int(body["configured"])
            agreed = frozenset(int(n) for n in body["agreed"])
        except (TypeError, KeyError, ValueError):
            raise WireError(f"{kind} from the session is not a session note") from None
        if self._session_id is None:
            self._session_id = session_id
            self._transport.bind()  # not before: a STATUS must carry the session id
            self._role.ready()
        elif self._session_id != session_id:
            raise Gone(f"the session is {session_id:#x} now, was {self._session_id:#x}: the host must see it")
        if self._config is not None and configured == self._config_count:
            self._agreed, self._active = agreed, True
            self._core.agree(agreed)
            self._event(Event.AGREED)

    # -- queues --------------------------------------------------------------------------------------------------
    def _queue_arrived(self, role: str, generation: int, hello: Body) -> None:
        try:
            record = ExportRecord(int(hello["export_id"]), int(hello["block_size"]), int(hello["size_bytes"]))
            depth, slot_bytes = int(hello["depth"]), int(hello["slot_bytes"])
        except (TypeError, KeyError, ValueError):
            raise WireError(f"HELLO of {role} lacks a field") from None
        arena = Arena.attach(self._role.runtime, role, generation)
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
        self._do(self._core.ask(role, self._queues.generation_of(role) or 0, body))

    # -- data (called by the transport, and before the loop waits) -----------------------------------------------
    def message(self, data: bytes) -> None:
        """A Response from interrupt OUT."""
        try:
            response = Response.decode(data)
            self._counts["responses"] += 1
            self._heard()
            self._do(self._core.answered(response))
        except WireError as error:
            self._counts["refused"] += 1
            self._role.log.error(f"the host broke the protocol: {error}: re-enumerating")
            self._transport.reenumerate()

    def filled(self, pending: Pending, epoch: int) -> None:
        """A read payload is in its slot."""
        self._do(self._core.filled(pending, epoch))

    def left(self, pending: Pending, epoch: int) -> None:
        """A write payload has left its slot."""
        self._do(self._core.left(pending, epoch))

    def _do(self, actions: list[Action] | list[Release]) -> None:
        for action in actions:
            if isinstance(action, Done):
                if self._queues.generation_of(action.export) == action.arena:
                    self._completions[action.export].append([action.sequence, action.status])
            elif isinstance(action, Fill):
                self._transport.receive_payload(
                    action.pending, self._core.epoch, self._address(action.pending), action.payload_bytes
                )
            elif isinstance(action, Release):
                self._released.append((action.export, action.arena))

    def _flush(self) -> None:
        if self._transport.settled:
            while self._released:
                self._arenas.pop(self._released.pop(), None)
            for send in self._core.dispatch():
                self._send(send)
        self._transport.submit()
        for role, batch in self._completions.items():
            if batch:
                self._completions[role] = []
                for start in range(0, len(batch), limits.MAX_BATCH):
                    # False: that queue is dead. The kernel reissues what it had.
                    self._queues.send(role, Kind.COMPLETIONS, batch[start : start + limits.MAX_BATCH])

    def _send(self, send: Send) -> None:
        self._counts["requests"] += 1
        self._transport.send_message(send.pending.request.encode())
        if send.payload_bytes:
            self._transport.send_payload(
                send.pending, self._core.epoch, self._address(send.pending), send.payload_bytes
            )

    def _address(self, pending: Pending) -> int:
        return self._arenas[pending.export, pending.arena].address + pending.offset

    def _status(self) -> dict[str, Any]:
        return {
            "link": _LINK_NAME[self._core.link],
            "stage": self._core.link.name.lower(),
            "since": self._since.isoformat(timespec="milliseconds"),
            "exports": {role: {"waiting": w, "on_wire": n} for role, (w, n) in self._core.counts().items()},
            **self._counts,
        }


def start(role: Role) -> None:
    Usb(role)


def retire(runtime: Runtime, role: str, args: dict[str, Any]) -> None:
    """Take the gadget away: unbind, unmount, remove the configfs tree."""
    tree_of(runtime, args).remove()
