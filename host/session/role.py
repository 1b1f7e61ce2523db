"""Role `session` of the host: finds a gadget, has usb attach it, shakes hands, asks STATUS every second.

Its death pauses no I/O: usb goes on, and tells the successor where things are. Decisions are host.session.core's.
"""

import errno
import os
from datetime import UTC, datetime
from typing import Any

from bus.envelope import Body, Kind
from bus.loop import Timer
from bus.role import Role
from common import limits, trace, wire
from common.errors import MALFORMED, Illegal, Refused, WireError
from common.refusals import Refusals
from common.wire import CONTROL_TYPE, Control, Ident, Status
from common.wire_v1 import CONTROL_TYPE_V1, ControlV1
from host.session.choice import chooser
from host.session.core import Event, SessionCore, State, Step, Verdict
from host.session.export import Export
from host.session.finder import Gadget, Uevents, find
from host.session.hold import Hold
from host.session.offer import Offer
from host.session.served import Args

_ANSWER_BYTES = {Control.IDENT: wire.IDENT_BYTES, Control.STATUS: wire.STATUS_BYTES}


class Session:
    """Handlers of the host's session role."""

    def __init__(self, role: Role, sources: list[Args], wanted: str | None) -> None:
        self._role, self._wanted = role, wanted
        self._offer = Offer(role, sources, lambda: self._event(Event.CHANGE), self._offer_replaced)
        self._core = SessionCore(len(self._offer.exports))
        self._gadget: Gadget | None = None
        self._hold = Hold()
        self._refused: set[tuple[int, int]] = set()  # could not be attached since all were tried
        self._said_many = False
        self._reason = "no gadget seen yet"
        self._since = datetime.now(UTC)
        self._was_online = False
        self._refusals = Refusals(role.log, role.loop.now)
        self._control_serial = 0
        self._asked: tuple[int, Control | ControlV1] | None = None  # the one ep0 request whose answer counts
        self._expiry: Timer | None = None
        self._next: Timer | None = None
        role.status = self._status
        self._uevents = Uevents()
        if self._uevents.fd is not None:
            role.loop.watch(self._uevents.fd, self._uevent)
        self._usb = role.connect("usb", "session", lambda: {}, self._usb_arrived, self._from_usb)
        role.ready()

    # -- events --------------------------------------------------------------------------------------------------
    def _event(self, event: Event, why: str = "") -> None:
        before = self._core.state
        try:
            steps = self._core.on(event)
        except Illegal as error:
            self._role.log.warning(f"ignored: {error}")
            return
        if why:
            self._reason = why
            self._role.log.info(why)
        after = self._core.state
        if after is not before:
            self._role.log.debug(f"{before.name} to {after.name} by {event.name}")
            self._set_expiry(after)
            if State.ONLINE in (before, after):
                self._since = datetime.now(UTC)
                self._was_online = True
        if event is Event.ACTIVE and before is State.SETTLING:
            self._offer.in_force()
        for step in steps:
            self._step(step)

    def _step(self, step: Step) -> None:
        match step:
            case Step.SEARCH:
                self._search()
            case Step.SEARCH_SOON:
                self._again(limits.RETRY_S, self._search)
            case Step.ATTACH:
                self._attach()
            case Step.ASK_IDENT:
                self._ask(Control.IDENT)
            case Step.SEND_CONFIG:
                trace.point("session.announcing")
                self._announce()
            case Step.ASK_STATUS:
                self._ask(Control.STATUS)
            case Step.TELL_ONLINE:
                self._tell({"note": "online", "session_id": self._core.session_id})
            case Step.RESTART:
                self._tell({"note": "restart", "epoch": self._core.epoch, "reason": self._reason})
            case Step.DETACH:
                self._asked = None
                self._tell({"note": "detach", "reason": self._reason})

    def _again(self, delay_s: float, handler: Any) -> None:
        """The one thing to be done next; what was planned before is void."""
        if self._next is not None:
            self._next.cancel()
        self._next = self._role.loop.after(delay_s, handler)

    def _set_expiry(self, state: State) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        bound = {
            State.ATTACHING: limits.ATTACH_S,
            State.IDENT: limits.SETTLE_S,
            State.CONFIG: limits.SETTLE_S,
            State.SETTLING: limits.SETTLE_S,
            State.RESTARTING: limits.SETTLE_S,
        }.get(state)
        if bound is not None:
            why = f"{state.name.lower()} takes longer than {bound:g} s"
            self._expiry = self._role.loop.after(bound, lambda: self._event(Event.EXPIRED, why))

    # -- searching -----------------------------------------------------------------------------------------------
    def _uevent(self) -> None:
        if self._uevents.usb_device_came() and self._core.state is State.SEARCHING:
            self._search()

    def _search(self) -> None:
        if self._core.state is not State.SEARCHING or self._offer.idle:
            return
        gadgets = find(self._wanted)
        gadget = self._free(gadgets)
        if gadget is None:
            if gadgets:
                self._reason = f"held by another replug: {_names(gadgets)}"
            self._again(limits.SEARCH_S, self._search)
            return
        if len(gadgets) > 1 and not self._said_many:
            self._said_many = True
            self._role.log.warning(f"{len(gadgets)} gadgets are here ({_names(gadgets)}): choose one with --gadget")
        self._gadget = gadget
        self._event(Event.FOUND)

    def _free(self, gadgets: list[Gadget]) -> Gadget | None:
        """One that no other replug holds; those that could not be attached come last, as others may have them."""
        untried = [g for g in gadgets if (g.bus, g.address) not in self._refused]
        if not untried:
            self._refused.clear()
        return next((g for g in untried or gadgets if self._hold.take(g)), None)

    def _attach(self) -> None:
        if self._gadget is not None:
            # Always with a reset: v0 payloads carry no header, and whoever had the device before us may have left half
            # of one in either kernel.
            self._tell(
                {
                    "note": "attach",
                    "bus": self._gadget.bus,
                    "address": self._gadget.address,
                    "exports": self._offer.for_usb(),
                    "reset": True,
                }
            )

    # -- usb -----------------------------------------------------------------------------------------------------
    def _tell(self, note: dict[str, Any]) -> None:
        self._usb.send(Kind.NOTE, note)

    def _usb_arrived(self, generation: int) -> None:
        self._event(Event.USB_NEW)

    def _from_usb(self, kind: Kind, body: Body) -> None:
        if kind is not Kind.NOTE or not isinstance(body, dict):
            raise WireError(f"{kind} from usb is not a note")
        try:
            if body.get("note") == "link":
                self._link(body)
            elif body.get("note") == "controlled":
                self._controlled(int(body["serial"]), int(body["error"]), bytes(memoryview(body["data"])))
        except MALFORMED as error:
            raise WireError(f"note {body.get('note')!r} of usb: {type(error).__name__}: {error}") from None

    def _link(self, note: dict[str, Any]) -> None:
        if note["state"] != "attached":
            if self._core.state is State.ATTACHING and self._gadget is not None:
                self._refused.add((self._gadget.bus, self._gadget.address))
            self._asked = None  # its answer may still come, and must not take the place of what is planned next
            self._event(Event.DETACHED, str(note["reason"]) if self._core.state is not State.SEARCHING else "")
            return
        here = int(note["bus"]), int(note["address"])
        if self._gadget is None or (self._gadget.bus, self._gadget.address) != here:
            self._gadget = next((g for g in find(None) if (g.bus, g.address) == here), Gadget(*here, "", ""))
            self._hold.take(self._gadget)  # our predecessor's went with it
        session_id = int(note["session_id"])
        event = self._core.link(int(note["version"]), int(note["epoch"]), session_id)
        self._event(event, f"session {session_id:#018x} goes on" if event is Event.ATTACHED_ONLINE else "")
        if event is Event.ATTACHED_ONLINE and self._offer.ejection.ejected:
            self._event(Event.CHANGE)  # whether our predecessor has said it nobody knows

    # -- ep0 -----------------------------------------------------------------------------------------------------
    def _announce(self) -> None:
        said = self._offer.announcement(self._core.version, self._core.epoch)
        if said is None:
            self._event(Event.FAILED, "every export is ejected, and a v0 gadget cannot be told so")
        else:
            self._ask(*said)

    def _offer_replaced(self) -> None:
        self._core.exports = len(self._offer.exports)
        self._tell({"note": "exports", "exports": self._offer.for_usb()})
        if self._core.state is State.SEARCHING:
            self._search()
        else:
            self._event(Event.CHANGE)

    def _ask(self, request: Control | ControlV1, data: bytes = b"") -> None:
        self._control_serial += 1
        # Serials of a dead predecessor's requests may still be answered to us.
        serial = (os.getpid() << 32) + self._control_serial
        self._asked = (serial, request)
        kind = CONTROL_TYPE_V1[request] if isinstance(request, ControlV1) else CONTROL_TYPE[request]
        note = {"note": "control", "serial": serial, "type": kind, "request": int(request), "epoch": self._core.epoch}
        if data:
            self._tell({**note, "data": data})
        else:
            self._tell({**note, "length": _ANSWER_BYTES[Control(request)]})

    def _controlled(self, serial: int, error: int, data: bytes) -> None:
        if self._asked is None or self._asked[0] != serial:
            return
        request, self._asked = self._asked[1], None
        if request is Control.STATUS:
            self._again(
                limits.STATUS_INTERVAL_S if self._core.state is State.ONLINE else limits.SETTLE_LOOK_S,
                self._next_status,
            )
        try:
            verdict = self._judge(request, error, data)
        except WireError as failure:
            self._refusals.count("answer", str(failure))
            verdict = Verdict(Event.FAILED, str(failure))
        if verdict is not None:
            self._event(verdict.event, verdict.why)

    def _judge(self, request: Control | ControlV1, error: int, data: bytes) -> Verdict | None:
        if error == errno.ESTALE:
            return None  # usb is in another epoch already, and tells us which
        if request is Control.STATUS:
            return self._core.missed() if error else self._status_verdict(data)
        if error:
            return Verdict(Event.FAILED, f"{request.name}: {os.strerror(error)}")
        if request is Control.IDENT:
            return self._core.ident(Ident.decode(data))
        return Verdict(Event.CONFIGURED)

    def _status_verdict(self, data: bytes) -> Verdict | None:
        try:
            return self._core.status(Status.decode(data))
        except WireError as error:
            self._refusals.count("answer", str(error))
            return self._core.missed()

    def _next_status(self) -> None:
        if self._core.state in (State.SETTLING, State.ONLINE) and self._asked is None:
            self._ask(Control.STATUS)

    # -- status --------------------------------------------------------------------------------------------------
    def _status(self) -> dict[str, Any]:
        online = self._core.state is State.ONLINE
        state = "online" if online else "parked" if self._was_online else "absent"
        absent = "" if online else f"no gadget since {self._since.isoformat(timespec='seconds')}: {self._reason}"
        since = self._since.isoformat(timespec="milliseconds")
        return {
            "session_id": f"{self._core.session_id or self._core.last_session_id:#018x}",
            "stage": self._core.state.name.lower(),
            "link": {
                "state": state,
                "since": since,
                "peer": f"v{self._core.version}",
                "speed": self._gadget.speed if self._gadget and online else "",
                "reason": "" if online else self._reason,
            },
            "exports": self._offer.status(since, absent),
            "ejection_told": self._told,
            **self._refusals.status(),
            "removing": [export.name for export in self._offer.served.gone],
        }

    @property
    def _told(self) -> bool:
        """Does the gadget act on what was last said of ejecting? Without a gadget nobody has to."""
        if self._core.state is State.ONLINE:
            return self._offer.announced
        return self._core.state is State.SEARCHING


def _names(gadgets: list[Gadget]) -> str:
    return ", ".join(gadget.serial or gadget.place or f"{gadget.bus}-{gadget.address}" for gadget in gadgets)


def start(role: Role) -> None:
    try:
        sources = list(role.args["exports"])
        for args in sources:
            Export.of(args)  # raises for what is none
        wanted = role.args.get("gadget")
        chooser(wanted)  # ValueError for what means nothing
        Session(role, sources, wanted)
    except (KeyError, TypeError, ValueError, WireError) as error:
        raise Refused(f"session: its arguments are not a host session's: {type(error).__name__}: {error}") from None
