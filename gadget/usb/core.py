"""What the gadget's usb decides: may requests be on the wire, which, and whose answer is this. No I/O, no clock.

The link is gadget.usb.link's table. The in-flight table holds, for each export, what its queue asked for; a link loss
puts everything back to be sent again in order, a death of the queue turns what is on the wire into orphans, and the
export's new requests wait until every orphan is answered or the link epoch changes (so that an old write cannot land
after a newer one was acknowledged). Called by gadget/usb/role.py and the simulator.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from errno import EINVAL, EOPNOTSUPP

from common import follow, limits
from common.errors import Illegal, WireError
from common.ledger import LEDGER_BYTES, NO_BOOT, Ledger
from common.wire import OPS, ExportRecord, Op, Request, Response, answers, out_of_bounds
from common.wire_v1 import Record, RequestFlag
from gadget.usb.link import TABLE, Event, Link, Step


class Stage(Enum):
    WAITING = auto()  # not on the wire in this epoch
    SENT = auto()  # Request queued on interrupt IN (and payload on bulk IN): may or may not have reached the host
    FILLING = auto()  # answered; its read payload is coming (v1: the first fragments of it are in the slot)
    LEAVING = auto()  # answered early (a host may refuse a write at once); its payload has not left the slot yet


@dataclass(slots=True)
class Pending:
    """One request of a queue's incarnation. `arena` names whose memory its slot is in."""

    export: str
    arena: int  # generation of the queue that owns the arena
    sequence: int
    offset: int  # of its slot in that arena, bytes
    request: Request
    v0: bool = True  # whose numbers its id is of
    stage: Stage = Stage.WAITING
    orphan: bool = False
    payload_left: bool = False  # of a write: nothing waits to be read from its slot any more
    status: int = 0  # the host's answer, once LEAVING
    filled_bytes: int = 0  # v1: of its read payload, in this epoch
    covers: int = 0  # of a FLUSH: what its export's ledger had acknowledged when it was sent
    asked: Request | None = None  # v0: the FUA write that `request` is the second half of, a FLUSH


@dataclass(slots=True)
class Send:
    """Put this Request on interrupt IN and, if `payload_bytes`, the slot's bytes on bulk IN."""

    pending: Pending
    payload_bytes: int


@dataclass(slots=True)
class Fill:
    """Read `payload_bytes` from bulk OUT into the slot; then call `filled`."""

    pending: Pending
    payload_bytes: int


@dataclass(slots=True)
class Copy:
    """v1: `size_bytes` of the fragment that has just arrived belong at `offset` of the slot."""

    pending: Pending
    offset: int
    size_bytes: int


@dataclass(slots=True)
class Done:
    """Tell the queue of `export` (this generation of it) that `sequence` ended with `status` (0 or errno)."""

    export: str
    arena: int
    sequence: int
    status: int


@dataclass(frozen=True, slots=True)
class Release:
    """The arena of this dead incarnation is not referred to any more."""

    export: str
    arena: int


Action = Send | Fill | Copy | Done | Release


@dataclass(slots=True)
class _Export:
    record: ExportRecord
    generation: int
    depth: int
    slot_bytes: int
    waiting: list[Pending] = field(default_factory=list)
    on_wire: dict[int, Pending] = field(default_factory=dict)  # by wire id
    orphan_arenas: set[int] = field(default_factory=set)

    def fenced(self) -> bool:
        """Is an orphan out? None without an arena of a dead queue: each I/O asks, and is not to look at all."""
        return bool(self.orphan_arenas) and any(p.orphan for p in self.on_wire.values())


class UsbCore:
    """Link state and in-flight table of the gadget's usb role. `ledger_of` opens an export's ledger by its id."""

    def __init__(self, ledger_of: Callable[[int], Ledger] = lambda export_id: Ledger(bytearray(LEDGER_BYTES))) -> None:
        self.link = Link.ABSENT
        self.epoch = 0
        self.data_moved = False  # since the last ENABLE
        self.v0 = True  # the wire in force: its Requests have no flags
        self._agreed: frozenset[int] = frozenset()
        self._exports: dict[str, _Export] = {}
        self._by_id: dict[int, str] = {}
        self.host_boot = NO_BOOT  # boot id of the host that has configured us
        self._ledger_of = ledger_of
        self._ledgers: dict[int, Ledger] = {}

    # -- the link ------------------------------------------------------------------------------------------------
    def on(self, event: Event) -> tuple[Step, ...]:
        """Follow the table. NEW_EPOCH is already done when this returns; the other steps are the shell's."""
        try:
            self.link, steps = TABLE[self.link, event]
        except KeyError:
            raise Illegal(f"{event} in {self.link}") from None
        if event is Event.CONFIGURED:
            self._agreed = frozenset()
            if self.data_moved:
                # The same enumeration was used by another incarnation of a v0 host: what the two kernels still hold of
                # untagged payloads cannot be told apart from new ones. (The shell refuses such a CONFIG of v1.)
                return (Step.REENUMERATE,)
        if Step.NEW_EPOCH in steps:
            self._new_epoch()
        return steps

    def agree(self, export_ids: frozenset[int]) -> None:
        """The host's set as the session accepted it: only these may have requests on the wire.

        What an earlier boot of the host may have lost is accepted too: else the session would not have agreed.
        """
        self._agreed = export_ids
        for export_id in export_ids:
            if self.ledger(export_id).lost_to(self.host_boot):
                self.ledger(export_id).accept(self.host_boot)

    def eject(self, export_ids: frozenset[int], flushed: frozenset[int]) -> None:
        """These exports may have nothing on the wire any more; what of `flushed` was answered is on stable storage."""
        self._agreed -= export_ids
        for export_id in flushed:
            ledger = self.ledger(export_id)
            # Else the host cannot have flushed it: that is another boot's, or has not been answered yet.
            if not ledger.lost_to(self.host_boot) and not self.on_wire(frozenset({export_id})):
                ledger.flushed(ledger.acknowledged)

    def on_wire(self, export_ids: frozenset[int]) -> bool:
        """Is anything of these exports not answered yet?"""
        return any(e.on_wire for e in self._exports.values() if e.record.export_id in export_ids)

    def export_id(self, role: str) -> int:
        return self._exports[role].record.export_id

    def ledger(self, export_id: int) -> Ledger:
        if export_id not in self._ledgers:
            self._ledgers[export_id] = self._ledger_of(export_id)
        return self._ledgers[export_id]

    def _new_epoch(self) -> None:
        self.epoch += 1
        self.data_moved = False
        self._agreed = frozenset()
        for export in self._exports.values():
            back = [p for p in export.on_wire.values() if not p.orphan]
            for pending in (*back, *export.waiting):
                pending.stage, pending.payload_left, pending.filled_bytes = Stage.WAITING, False, 0
                pending.request, pending.asked = pending.asked or pending.request, None
            export.waiting = sorted(back + export.waiting, key=lambda p: p.sequence)
            export.on_wire.clear()

    # -- queues --------------------------------------------------------------------------------------------------
    def queue_arrived(self, role: str, generation: int, record: ExportRecord, depth: int, slot_bytes: int) -> None:
        """A new incarnation of an export's queue. It replays everything it has; its predecessor's waiting is void."""
        other = self._by_id.get(record.export_id)
        if other not in (None, role):
            raise WireError(f"{role}: export {record.export_id:#x} is {other}'s")
        old = self._exports.get(role)
        new = _Export(record, generation, depth, slot_bytes)
        if old is not None:
            if old.record.export_id != record.export_id:
                raise WireError(f"{role}: was export {old.record.export_id:#x}, is now {record.export_id:#x}")
            for pending in old.on_wire.values():
                pending.orphan = True
            new.on_wire = old.on_wire
            new.orphan_arenas = old.orphan_arenas | {old.generation}
        self._exports[role] = new
        self._by_id[record.export_id] = role

    def ask(self, role: str, generation: int, body: object) -> list[Action]:
        """REQUESTS of a queue: list of [sequence, op, slot, lba, blocks, flags]."""
        export = self._exports.get(role)
        if export is None or export.generation != generation or not isinstance(body, list):
            raise WireError(f"REQUESTS from {role}, which is not a queue of this generation, or not a list")
        if len(body) + len(export.waiting) + len(export.on_wire) > 2 * limits.MAX_BATCH:
            raise WireError(f"{role}: more requests than a queue has tags")
        actions: list[Action] = []
        for item in body:
            pending = self._pending(role, export, item)
            request = pending.request
            if out_of_bounds(request.op, request.lba, request.blocks, export.record, export.slot_bytes) is None:
                export.waiting.append(pending)
            else:
                actions.append(Done(role, generation, pending.sequence, EINVAL))
        return actions

    def _pending(self, role: str, export: _Export, item: object) -> Pending:
        if not isinstance(item, list) or len(item) != 6 or any(type(n) is not int or n < 0 for n in item):
            raise WireError(f"{role}: request {item!r} is not six numbers")
        sequence, code, slot, lba, blocks, flags = item
        op = OPS.get(code)
        if slot >= export.depth or op is None or flags > 0xFF:  # v1 has a byte for them
            raise WireError(f"{role}: request {item!r} names no slot, op or flags of ours")
        number = slot if self.v0 else follow.request_id(export.generation, sequence)
        request = Request(op, number, export.record.export_id, lba, blocks, flags)
        return Pending(role, export.generation, sequence, slot * export.slot_bytes, request, self.v0)

    # -- the wire ------------------------------------------------------------------------------------------------
    def dispatch(self) -> Iterator[Send]:
        """Everything that may go on the wire now, in order. Each is marked as sent when it is yielded."""
        if self.link is not Link.ONLINE:
            return
        for export in self._exports.values():
            if not export.waiting or export.record.export_id not in self._agreed or export.fenced():
                continue
            waiting, export.waiting = export.waiting, []
            for pending in waiting:
                if pending.v0 is not self.v0:  # it has waited for a host, and this one is of the other version
                    self._number(export, pending)
                request = pending.request
                if request.request_id in export.on_wire:
                    export.waiting.append(pending)
                    continue
                if self.v0 and request.flags:
                    pending.asked, pending.request = request, replace(request, flags=0)
                pending.stage = Stage.SENT
                if request.op is Op.FLUSH:
                    pending.covers = self.ledger(export.record.export_id).acknowledged
                export.on_wire[request.request_id] = pending
                self.data_moved = True
                yield Send(pending, self._payload(export, pending) if request.op is Op.WRITE else 0)

    def _number(self, export: _Export, pending: Pending) -> None:
        """Ids are unique per export while in flight. smoo builds them as queue << 16 | tag, so v0 gets the slot."""
        slot = pending.offset // export.slot_bytes
        number = slot if self.v0 else follow.request_id(pending.arena, pending.sequence)
        pending.v0, pending.request = self.v0, replace(pending.request, request_id=number)

    def unspeakable(self) -> list[Action]:
        """What waits and cannot be said to this host: v0 has no write zeroes. The block layer writes them instead."""
        done: list[Action] = []
        for export in self._exports.values() if self.v0 and self.link is Link.ONLINE else ():
            for pending in [p for p in export.waiting if p.request.op is Op.WRITE_ZEROES]:
                export.waiting.remove(pending)
                done.append(Done(pending.export, pending.arena, pending.sequence, EOPNOTSUPP))
        return done

    def answered(self, response: Response) -> list[Action]:
        """v0: a Response arrived. WireError if it answers nothing that is out: the link must start over."""
        export, pending = self._asked(response)
        if pending.stage is not Stage.SENT:
            raise WireError(f"a second Response to the same Request: {response}")
        if response.op is Op.READ and response.status == 0:
            pending.stage = Stage.FILLING
            return [Fill(pending, self._payload(export, pending))]
        return self._judged(export, pending, response.status)

    def arrived(self, record: Record) -> list[Action]:
        """v1: a Response, or a fragment of its data. WireError if it is not what must come: start over."""
        export, pending = self._asked(record)
        reads = record.op is Op.READ and record.mark == 0
        if pending.stage is not (Stage.FILLING if reads and pending.filled_bytes else Stage.SENT):
            raise WireError(f"a second Response to the same Request: {record}")
        if not reads:
            if record.data_bytes or record.data_offset:
                raise WireError(f"data with a Response that has none: {record}")
            return self._judged(export, pending, record.mark)
        whole = self._payload(export, pending)
        end = pending.filled_bytes + record.data_bytes
        if record.data_offset != pending.filled_bytes or not record.data_bytes or end > whole:
            raise WireError(f"a fragment out of its place, at {pending.filled_bytes} of {whole} bytes: {record}")
        copy = Copy(pending, record.data_offset, record.data_bytes)
        pending.stage, pending.filled_bytes = Stage.FILLING, end
        return [copy, *self._end(export, pending, 0)] if end == whole else [copy]

    def _asked(self, response: Response | Record) -> tuple[_Export, Pending]:
        self.data_moved = True
        role = self._by_id.get(response.export_id)
        export = self._exports[role] if role is not None else None
        pending = export.on_wire.get(response.request_id) if export is not None else None
        if export is None or pending is None or not answers(response, pending.request):
            raise WireError(f"a Response that answers nothing: {response}")
        return export, pending

    def _judged(self, export: _Export, pending: Pending, status: int) -> list[Action]:
        if pending.request.op is Op.WRITE and not pending.payload_left:
            pending.stage, pending.status = Stage.LEAVING, status
            return []
        return self._end(export, pending, status)

    def left(self, pending: Pending, epoch: int) -> list[Action]:
        """The write payload of `pending`, sent in link epoch `epoch`, has left its slot: the queue may reuse it."""
        export = self._exports.get(pending.export)
        if epoch != self.epoch or export is None:
            return []
        pending.payload_left = True
        return self._end(export, pending, pending.status) if pending.stage is Stage.LEAVING else []

    def filled(self, pending: Pending, epoch: int) -> list[Action]:
        """The read payload of `pending`, asked for in link epoch `epoch`, is in its slot."""
        export = self._exports.get(pending.export)
        if epoch != self.epoch or export is None or pending.stage is not Stage.FILLING:
            return []  # an epoch change put it back: it is asked again
        return self._end(export, pending, 0)

    def _end(self, export: _Export, pending: Pending, status: int) -> list[Action]:
        del export.on_wire[pending.request.request_id]
        if pending.asked is not None and pending.request.op is Op.WRITE and status == 0 and not pending.orphan:
            # v0 has no FUA: the write is only half of it.
            pending.request = Request(Op.FLUSH, pending.request.request_id, pending.request.export_id, 0, 0)
            pending.stage = Stage.WAITING
            export.waiting.insert(0, pending)
            return []
        if not pending.orphan:
            if status == 0 and pending.request.op is not Op.READ:
                self._enter(export, pending)
            return [Done(pending.export, pending.arena, pending.sequence, status)]
        return list(self._releasable(pending.export, export))

    def _enter(self, export: _Export, pending: Pending) -> None:
        """Keep the books, before the queue hears of it: a death in between counts a write that is then done again."""
        request, ledger = pending.request, self.ledger(export.record.export_id)
        if request.op is Op.FLUSH:
            ledger.flushed(pending.covers)
        elif request.op is Op.WRITE_ZEROES or (request.op is Op.WRITE and not request.flags & RequestFlag.FUA):
            ledger.wrote(self._payload(export, pending), self.host_boot)

    def releasable(self) -> list[Release]:
        """Arenas of dead queues that nothing refers to any more (after an epoch change, or their last answer)."""
        return [r for role, export in self._exports.items() for r in self._releasable(role, export)]

    @staticmethod
    def _releasable(role: str, export: _Export) -> Iterator[Release]:
        used = {p.arena for p in export.on_wire.values()}
        for arena in sorted(export.orphan_arenas - used):
            export.orphan_arenas.discard(arena)
            yield Release(role, arena)

    @staticmethod
    def _payload(export: _Export, pending: Pending) -> int:
        return pending.request.blocks * export.record.block_size

    def counts(self) -> dict[str, tuple[int, int]]:
        """For status: (waiting, on the wire) of each export's role."""
        return {role: (len(e.waiting), len(e.on_wire)) for role, e in self._exports.items()}
