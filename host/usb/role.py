"""Role `usb` of the host: joins UsbCore to the attachment, the arenas, the sources and the session.

What may start, and whose payload is next, is host.usb.core's; the device and its transfers are host.usb.attachment's.
"""

import errno
from typing import Any

from bus.arena import Arena
from bus.envelope import Body, Kind
from bus.role import Role
from common import follow, limits, trace
from common.errors import MALFORMED, WireError
from common.refusals import Refusals
from common.wire import Control, ExportRecord, Request
from common.wire_v1 import ControlV1, Record
from host.usb import library
from host.usb.attachment import Attachment
from host.usb.core import Action, Answer, Dispatch, Served, Take, UsbCore
from host.usb.streams import ControlRequest
from host.usb.waits import Waits


class Usb:
    """Handlers of the host's usb role."""

    def __init__(self, role: Role) -> None:
        self._role, self._core = role, UsbCore()
        self._arenas: dict[int, Arena] = {}  # by export id
        self._hellos: dict[str, tuple[int, ExportRecord, bool]] = {}  # sources that are here, offered or not
        self._introduced: dict[str, int] = {}
        self._batches: dict[str, list[list[int]]] = {}
        self._followed: dict[str, list[list[Any]]] = {}  # ids of what is in the batches, while I/Os are followed
        self._attachment: Attachment | None = None
        self._attached = False
        self._waits = Waits(role.loop.now)
        self._announced = False  # have our exports been said to the gadget, in this epoch
        self._session_id = 0
        self._reason = "no gadget yet"
        self._counts = {"requests": 0, "responses": 0, "attachments": 0, "epochs": 0}
        self._refusals = Refusals(role.log, role.loop.now)
        role.status = self._status
        self._sources = role.serve("data", self._source_arrived, self._from_source)
        self._session = role.serve("session", self._session_arrived, self._from_session)
        role.loop.before_wait(self._flush)
        role.ready()

    # -- the session ---------------------------------------------------------------------------------------------
    def _session_arrived(self, role: str, generation: int, hello: Body) -> None:
        self._tell_link()

    def _tell_link(self) -> None:
        here = self._attachment
        note = {
            "note": "link",
            "state": "attached" if self._attached else "detached",
            "bus": here.bus if here else 0,
            "address": here.address if here else 0,
            "version": here.version if here else 0,
            "epoch": here.epoch if here else 0,
            "session_id": self._session_id,
            "reason": self._reason,
        }
        self._session.send("session", Kind.NOTE, note)

    def _from_session(self, role: str, kind: Kind, body: Body) -> None:
        if kind is not Kind.NOTE or not isinstance(body, dict):
            raise WireError(f"{kind} from the session is not a note")
        try:
            self._take_note(body)
        except MALFORMED as error:
            raise WireError(f"note {body.get('note')!r} of the session: {type(error).__name__}: {error}") from None

    def _take_note(self, note: dict[str, Any]) -> None:
        match note.get("note"):
            case "attach":
                self._attach(note)
            case "detach" if self._attachment is not None:
                self._attachment.close(str(note["reason"]))
            case "detach":
                self._tell_link()
            case "restart":
                here = self._attachment
                if here is not None and here.epoch == int(note["epoch"]):  # else it has begun anew already
                    here.restart(str(note["reason"]))
            case "exports":  # while others are in use; the session announces them next
                self._offer(note["exports"])
            case "online":
                self._session_id = int(note["session_id"])
                self._waits.in_force()
            case "control":
                self._control(note)
            case unknown:
                raise WireError(f"the session's note {unknown!r} is not known")

    def _attach(self, note: dict[str, Any]) -> None:
        if self._attachment is not None:
            # A new session that does not know yet what its predecessor has asked for: it is told when that is done.
            if self._attached:
                self._tell_link()
            return
        bus, address, reset = int(note["bus"]), int(note["address"]), bool(note["reset"])
        self._offer(note["exports"])
        self._role.log.info(f"attaching to {bus}-{address}")
        self._attachment = Attachment(self._role.loop, bus, address, reset, self)

    def _offer(self, exports: list[Any]) -> None:
        served = [
            Served(ExportRecord(int(number), int(block_size), int(size_bytes)), str(name), bool(read_only))
            for number, block_size, size_bytes, name, read_only in exports
        ]
        forgotten = self._core.offer(served)
        self._waits.offer(*([one.record.export_id for one in ones] for ones in (served, forgotten)))
        for gone in forgotten:
            self._introduced.pop(gone.role, None)
            arena = self._arenas.pop(gone.record.export_id, None)
            if arena is not None:
                arena.unlink()  # another export may take its name
        roles = {one.role for one in self._core.offered()}
        for role in [role for role in self._hellos if role in roles]:
            self._introduce(role)

    def _control(self, note: dict[str, Any]) -> None:
        request = ControlRequest(
            int(note["serial"]),
            int(note["type"]),
            int(note["request"]),
            bytes(memoryview(note.get("data", b""))),
            int(note.get("length", 0)),
        )
        here = self._attachment
        if here is None or not self._attached:
            self.controlled(request.serial, errno.ENODEV, b"")
        elif int(note.get("epoch", here.epoch)) != here.epoch:
            self.controlled(
                request.serial, errno.ESTALE, b""
            )  # of an epoch that is over: the session is told of the new
        else:
            self._announced |= request.request in (Control.CONFIG_EXPORTS, ControlV1.CONFIG)
            here.control(request)

    # -- the attachment (called by it) ---------------------------------------------------------------------------
    def attached(self) -> None:
        """The interface is ours."""
        self._attached = True
        self._counts["attachments"] += 1
        self._begin()

    def _begin(self) -> None:
        assert self._attachment is not None
        self._announced, self._session_id = False, 0
        trace.point("usb.epoch.begun")
        self._counts["epochs"] += 1
        self._core.attach(self._attachment.version)
        self._tell_link()

    def broken(self, why: str) -> None:
        """The gadget broke the protocol: the end of the epoch, or of the attachment, follows."""
        self._refusals.count("message", why)

    def restarting(self) -> None:
        """v1: this epoch's data are over; what is at a source ends there, and is asked for again."""
        self._role.log.warning("the data plane starts over")
        self._lost()

    def restarted(self) -> None:
        """v1: a new epoch has begun."""
        self._begin()

    def detached(self, reason: str) -> None:
        """The device is gone, or was never had; no transfer is left."""
        self._role.log.warning(f"detached: {reason}")
        if self._core.attached:
            self._lost()
        self._attachment, self._attached, self._session_id, self._reason = None, False, 0, reason
        self._tell_link()

    def message(self, data: bytes) -> None:
        """v0: a Request. WireError goes to the attachment, which ends."""
        self._heard()
        trace.point("usb.request.arrived")
        request = Request.decode(data)
        actions = self._core.received(request)
        self._waits.arrived(request.export_id)
        self._do(actions)
        self._tell_refused()

    def request(self, record: Record) -> int | None:
        """v1: a Request. WireError goes to the attachment, which begins a new epoch."""
        self._heard()
        trace.point("usb.request.arrived")
        sequence, actions = self._core.requested(record)
        self._waits.arrived(record.export_id)
        self._do(actions)
        if self._core.refused:
            self._tell_refused()
        return sequence

    def _tell_refused(self) -> None:
        while self._core.refused:
            self._refusals.count("request", self._core.refused.popleft())

    def payload_of(self, sequence: int) -> int:
        return self._core.payload_of(sequence)

    def _heard(self) -> None:
        self._counts["requests"] += 1
        if not self._announced:
            raise WireError("a Request before our exports were announced: of a link that is over")

    def _lost(self) -> None:
        self._core.detach()
        self._waits.lost()

    def taken(self, sequence: int) -> None:
        trace.point("usb.payload.taken")
        self._do(self._core.taken(sequence))

    def sent(self, sequence: int) -> None:
        actions = self._core.sent(sequence)
        if actions:
            self._do(actions)

    def controlled(self, serial: int, error: int, data: bytes) -> None:
        self._session.send("session", Kind.NOTE, {"note": "controlled", "serial": serial, "error": error, "data": data})

    # -- sources -------------------------------------------------------------------------------------------------
    def _source_arrived(self, role: str, generation: int, hello: Body) -> None:
        try:
            record = ExportRecord(int(hello["export_id"]), int(hello["block_size"]), int(hello["size_bytes"]))
            read_only = bool(hello["read_only"])
        except MALFORMED:
            raise WireError(f"HELLO of {role} lacks a field") from None
        self._hellos[role] = (generation, record, read_only)
        self._batches[role] = []
        if any(served.role == role for served in self._core.offered()):
            self._introduce(role)

    def _introduce(self, role: str) -> None:
        """Tell a source its arena and give it what waits, once for each of its incarnations."""
        generation, record, read_only = self._hellos[role]
        if self._introduced.get(role) == generation:
            return
        try:
            actions = self._core.source_arrived(role, generation, record, read_only)
        except WireError as error:
            self._role.log.error(f"not used: {error}")
            return
        self._introduced[role] = generation
        arena = self._arena(record.export_id, role)
        note = {"note": "arena", "owner": role_arena(role), "generation": arena.generation}
        self._sources.send(role, Kind.NOTE, note)
        self._role.log.info(f"{role} is here, generation {generation}")
        self._do(actions)

    def _arena(self, export_id: int, role: str) -> Arena:
        if export_id not in self._arenas:
            self._arenas[export_id] = Arena.create(
                self._role.runtime, role_arena(role), self._role.generation, limits.HOST_ARENA_BYTES
            )
        return self._arenas[export_id]

    def _from_source(self, role: str, kind: Kind, body: Body) -> None:
        if kind is not Kind.COMPLETIONS:
            raise WireError(f"{kind} is not for usb")
        trace.point("usb.completions.received")
        self._do(self._core.completed(role, body))

    # -- data ----------------------------------------------------------------------------------------------------
    def _do(self, actions: list[Action]) -> None:
        here = self._attachment
        for action in actions:
            if type(action) is Dispatch:
                self._batches[action.role].append(action.item)
                if follow.on:
                    self._follow(action)
            elif here is None:
                continue  # answers of an ended attachment: nobody is there to hear them
            elif type(action) is Answer:
                self._answer(here, action)
            elif type(action) is Take:
                here.take(action.sequence, self._place(action), action.size_bytes)

    def _place(self, take: Take) -> int | None:
        if take.export_id is None:
            return None
        return self._arena(take.export_id, self._core.role_of(take.export_id)).address + take.offset

    def _follow(self, dispatch: Dispatch) -> None:
        """Tell the step, and the source the id: its items know our sequence only."""
        request = self._core.request_of(dispatch.item[0])
        io = follow.io_id(request.export_id, request.request_id)
        follow.step(io, "given to its source", op=request.op.name.lower(), lba=request.lba, blocks=request.blocks)
        self._followed.setdefault(dispatch.role, []).append([dispatch.item[0], io])

    def _answer(self, here: Attachment, answer: Answer) -> None:
        self._counts["responses"] += 1
        if follow.on:
            response = answer.response
            io = follow.io_id(response.export_id, response.request_id)
            follow.step(io, "answering", status=response.status, payload=answer.size_bytes)
        trace.point("usb.answering")
        self._waits.answered(answer.response.export_id)
        address = self._arenas[answer.response.export_id].address + answer.offset if answer.size_bytes else 0
        here.answer(answer, address)

    def _flush(self) -> None:
        if self._attachment is not None:
            self._attachment.pump()
        for role, batch in self._batches.items():
            if batch:
                self._batches[role] = []
                trace.point("usb.requests.forwarding")
                followed = self._followed.pop(role, [])
                for start in range(0, len(followed), limits.MAX_BATCH):
                    note = {"note": "follow", "ids": followed[start : start + limits.MAX_BATCH]}
                    self._sources.send(role, Kind.NOTE, note)
                for start in range(0, len(batch), limits.MAX_BATCH):
                    # False: that source is dead. Its successor gets all that is unanswered.
                    self._sources.send(role, Kind.REQUESTS, batch[start : start + limits.MAX_BATCH])

    def _status(self) -> dict[str, Any]:
        here = self._attachment
        return {
            "link": "attached" if self._attached else "attaching" if here else "detached",
            "device": f"{here.bus}-{here.address}" if here else None,
            "peer": f"v{here.version}" if here else None,
            "reason": "" if self._attached else self._reason,
            "session_id": f"{self._session_id:#018x}",
            "in_flight": self._core.counts(),
            "born": self._waits.born,
            "waits": {one.name: self._waits.status(one.record.export_id) for one in self._core.offered()},
            "arenas_locked": all(arena.locked for arena in self._arenas.values()),
            **self._counts,
            **self._refusals.status(),
        }


def role_arena(source_role: str) -> str:
    """Name of the arena of a source's export: usb's own, as a write's payload must survive the source."""
    return f"usb.{source_role}"


def start(role: Role) -> None:
    library.require()
    Usb(role)
