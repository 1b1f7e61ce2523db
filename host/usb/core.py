"""What the host's usb decides: is this Request sane, where does its payload go, may its source start it. No I/O.

A Request is TAKING its write payload, then READY, then AT_SOURCE; a read answer is SENDING its payload. Payloads carry
no header in v0, so their order is everything: those of writes are taken in the order of the Requests, those of reads
are sent in the order of the Responses. In v1 they say whose they are, and none waits for another. When the attachment
or its epoch ends, what is at a source becomes an orphan: its completion is dropped, its space stays taken until then,
and no Request of the next epoch starts on that export before the last orphan has ended. Called by host/usb/role.py and
the simulator.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto
from errno import EINVAL, EROFS

from common import limits
from common.errors import WireError
from common.wire import ExportRecord, Op, Request, Response, out_of_bounds
from common.wire_v1 import Record, RequestFlag
from host.usb.extents import Extents


@dataclass(frozen=True, slots=True)
class Served:
    """One export that we offer. `role` is the source that has its bytes."""

    record: ExportRecord
    name: str
    read_only: bool

    @property
    def role(self) -> str:
        return f"source.{self.name}"


class Stage(Enum):
    WAITING = auto()  # for space in the arena
    TAKING = auto()  # its write payload is coming on bulk IN
    READY = auto()  # its source may have it as soon as it is there and no orphan is left
    AT_SOURCE = auto()
    SENDING = auto()  # answered; its read payload is leaving on bulk OUT


@dataclass(slots=True)
class Work:
    """One Request in our hands. `status` is set for one that is refused already but whose payload must be taken."""

    sequence: int
    request: Request
    served: Served | None
    payload_bytes: int
    stage: Stage = Stage.WAITING
    offset: int | None = None
    status: int = 0

    def of(self, served: Served) -> bool:
        """Is it of this export, as it is offered now?"""
        return self.served is served or self.served == served


@dataclass(slots=True)
class Take:
    """Read `size_bytes` from bulk IN into the export's arena; `export_id` None: throw them away. Then `taken`."""

    sequence: int
    export_id: int | None
    offset: int
    size_bytes: int


@dataclass(slots=True)
class Dispatch:
    """Give this to the source: one item of REQUESTS."""

    role: str
    item: list[int]


@dataclass(slots=True)
class Answer:
    """Put the Response on interrupt OUT and, if `size_bytes`, that part of the arena on bulk OUT; then `sent`."""

    response: Response
    sequence: int
    offset: int
    size_bytes: int


Action = Take | Dispatch | Answer


@dataclass(slots=True)
class _Export:
    served: Served
    role: str  # that of `served`, which each I/O would make anew
    space: Extents
    work: dict[int, Work] = field(default_factory=dict)  # this attachment's, by request id; answered ones are not here
    waiting: deque[Work] = field(default_factory=deque)  # for space, in order
    orphans: dict[int, int | None] = field(default_factory=dict)  # sequence to offset, of attachments before
    source: int | None = None  # generation of the source that is here


class UsbCore:
    """The in-flight table of the host's usb role. `attached` is false between attachments: nothing may arrive then."""

    def __init__(self) -> None:
        self.attached = False
        self._ordered = True  # v0: payloads come in the order of their Requests
        self._sequence = 0
        self._exports: dict[int, _Export] = {}
        self._offered: frozenset[int] = frozenset()
        self._by_sequence: dict[int, Work] = {}
        self.refused: deque[str] = deque()  # why a Request was answered without its source: the shell takes these away
        self._takes: deque[Work] = deque()  # writes in the order of their Requests, not yet handed to bulk IN

    # -- the link ------------------------------------------------------------------------------------------------
    def offer(self, exports: list[Served]) -> list[Served]:
        """The set we serve from now on. One that is not in it stays known while anything of it is under way.

        Returns those that are forgotten.
        """
        for served in exports:
            known = self._exports.get(served.record.export_id)
            if known is None:
                space = Extents(limits.HOST_ARENA_BYTES)
                self._exports[served.record.export_id] = _Export(served, served.role, space)
            elif known.served != served:
                known.served, known.role, known.source = served, served.role, None
        self._offered = frozenset(served.record.export_id for served in exports)
        busy = {work.request.export_id for work in self._by_sequence.values()}
        gone = [e for n, e in self._exports.items() if n not in self._offered | busy and not (e.work or e.orphans)]
        for export in gone:
            del self._exports[export.served.record.export_id]
        return [export.served for export in gone]

    def attach(self, version: int = 0) -> None:
        """A device is claimed, or its v1 data plane begins anew: its Requests follow."""
        self.attached, self._ordered = True, version == 0

    def detach(self) -> None:
        """The attachment is over and no transfer of it is left: the gadget will ask again for all unanswered."""
        self.attached = False
        self._takes.clear()
        for export in self._exports.values():
            for work in export.work.values():
                if work.stage is Stage.AT_SOURCE:
                    export.orphans[work.sequence] = work.offset
                elif work.offset is not None:
                    export.space.free(work.offset)
            export.work.clear()
            export.waiting.clear()
        for work in self._by_sequence.values():
            if work.stage is Stage.SENDING and work.offset is not None:
                self._exports[work.request.export_id].space.free(work.offset)
        self._by_sequence.clear()

    # -- Requests ------------------------------------------------------------------------------------------------
    def received(self, request: Request) -> list[Action]:
        """v0: a message from interrupt IN. WireError if the gadget breaks the protocol: the attachment is over."""
        return self._requested(request)[1]

    def requested(self, record: Record) -> tuple[int | None, list[Action]]:
        """v1: the first record of a Request. Also its sequence, if a payload follows it. WireError as `received`."""
        if record.data_bytes and record.op is not Op.WRITE:
            raise WireError(f"data with a Request that has none: {record}")
        r = record
        return self._requested(Request(r.op, r.request_id, r.export_id, r.lba, r.blocks, r.mark))

    def request_of(self, sequence: int) -> Request:
        """What a source was given as `sequence`."""
        return self._by_sequence[sequence].request

    def payload_of(self, sequence: int) -> int:
        """v1: bytes of the payload of a write whose sequence `requested` gave."""
        return self._by_sequence[sequence].payload_bytes

    def _requested(self, request: Request) -> tuple[int | None, list[Action]]:
        export = self._exports.get(request.export_id)
        if export is None or request.export_id not in self._offered:
            return None, self._unknown(request)
        if request.request_id in export.work:
            raise WireError(f"request id {request.request_id:#x} is in flight already: {request}")
        if len(export.work) >= limits.MAX_IN_FLIGHT:
            raise WireError(f"export {request.export_id:#x}: more than {limits.MAX_IN_FLIGHT} requests in flight")
        served = export.served
        size = request.blocks * served.record.block_size if request.op <= Op.WRITE else 0
        if request.op is Op.WRITE and size > limits.MAX_REQUEST_BYTES:
            raise WireError(f"a write of {size} bytes is more than {limits.MAX_REQUEST_BYTES}: {request}")
        self._sequence += 1
        status, why = _refusal(request, served, self._ordered)
        if status:
            self.refused.append(f"export {served.name}: {why}")
        work = Work(self._sequence, request, served, size, status=status)
        if work.status and not (request.op is Op.WRITE and size):
            return None, [Answer(Response.to(request, work.status), work.sequence, 0, 0)]
        export.work[request.request_id] = work
        self._by_sequence[work.sequence] = work
        has_payload = request.op is Op.WRITE and size > 0
        return work.sequence if has_payload else None, self._enter(export, work)

    def _unknown(self, request: Request) -> list[Action]:
        if request.op is Op.WRITE:
            raise WireError(f"a write to an export we do not serve: its payload's length is unknown: {request}")
        self._sequence += 1
        self.refused.append(f"{request.op.name} of export {request.export_id:#x}, which we do not serve")
        return [Answer(Response.to(request, EINVAL), self._sequence, 0, 0)]

    def _enter(self, export: _Export, work: Work) -> list[Action]:
        if work.request.op is Op.WRITE and self._ordered:
            self._takes.append(work)
        if not work.payload_bytes:
            return self._ready(export, work)
        if work.status:  # thrown away, so it needs no space, only its turn
            return self._take(work)
        export.waiting.append(work)
        return self._give_space(export)

    def _give_space(self, export: _Export) -> list[Action]:
        """First come, first served: a big one must not starve behind small ones."""
        actions: list[Action] = []
        while export.waiting:
            work = export.waiting[0]
            work.offset = export.space.take(work.payload_bytes)
            if work.offset is None:
                break
            export.waiting.popleft()
            actions += self._take(work) if work.request.op is Op.WRITE else self._ready(export, work)
        return actions

    def _take(self, work: Work) -> list[Action]:
        work.stage = Stage.TAKING
        if not self._ordered:
            return [_take_of(work)]
        actions: list[Action] = []
        while self._takes and self._takes[0].stage is Stage.TAKING:
            actions.append(_take_of(self._takes.popleft()))
        return actions

    def taken(self, sequence: int) -> list[Action]:
        """The write payload of `sequence` is in the arena, or thrown away."""
        work = self._by_sequence.get(sequence)
        if work is None or work.stage is not Stage.TAKING:
            return []
        export = self._exports[work.request.export_id]
        if work.status:
            return [self._answer(export, work, work.status)]
        return self._ready(export, work)

    # -- sources -------------------------------------------------------------------------------------------------
    def _ready(self, export: _Export, work: Work) -> list[Action]:
        work.stage = Stage.READY
        return [] if export.source is None or export.orphans else [self._dispatch(export, work)]

    def _release(self, export: _Export) -> list[Action]:
        if export.source is None or export.orphans:
            return []
        ready = [work for work in export.work.values() if work.stage is Stage.READY]
        return [self._dispatch(export, work) for work in sorted(ready, key=lambda work: work.sequence)]

    @staticmethod
    def _dispatch(export: _Export, work: Work) -> Dispatch:
        work.stage = Stage.AT_SOURCE
        r = work.request
        return Dispatch(export.role, [work.sequence, int(r.op), work.offset or 0, r.lba, r.blocks, r.flags])

    def source_arrived(self, role: str, generation: int, record: ExportRecord, read_only: bool) -> list[Action]:
        """A new incarnation of a source: its predecessor is dead, so whatever was there has ended, done or not.

        What is unanswered goes to it once more. WireError if it serves something other than what is announced.
        """
        export = self._exports.get(record.export_id)
        if export is None or export.served.role != role:
            raise WireError(f"{role}: export {record.export_id:#x} is not offered as {role}")
        if export.served.record != record or export.served.read_only != read_only:
            export.source = None
            raise WireError(f"{role}: has {record}, but announced is {export.served.record}")
        export.source = generation
        actions: list[Action] = []
        for offset in export.orphans.values():
            if offset is not None:
                export.space.free(offset)
        export.orphans.clear()
        for work in export.work.values():
            if work.stage is Stage.AT_SOURCE:
                work.stage = Stage.READY
        actions += self._release(export)
        actions += self._give_space(export)
        return actions

    def completed(self, role: str, body: object) -> list[Action]:
        """COMPLETIONS of the source that is here: list of [sequence, status]. WireError if it is anything else."""
        if not isinstance(body, list) or not all(_is_completion(item) for item in body):
            raise WireError(f"{role}: COMPLETIONS is not a list of [sequence, status]")
        export = next((e for e in self._exports.values() if e.role == role), None)
        if export is None:
            return []
        actions: list[Action] = []
        for sequence, status in body:
            actions += self._completed(export, sequence, status)
        return actions

    def _completed(self, export: _Export, sequence: int, status: int) -> list[Action]:
        if sequence in export.orphans:
            offset = export.orphans.pop(sequence)
            if offset is not None:
                export.space.free(offset)
            return [*self._release(export), *self._give_space(export)]
        work = self._by_sequence.get(sequence)
        if work is None or work.stage is not Stage.AT_SOURCE or not work.of(export.served):
            return []  # of an attachment before the last source died
        answer = self._answer(export, work, status)
        return [answer, *self._give_space(export)] if export.waiting else [answer]

    # -- Responses -----------------------------------------------------------------------------------------------
    def _answer(self, export: _Export, work: Work, status: int) -> Answer:
        del export.work[work.request.request_id]  # the gadget may use the id again as soon as it has the Response
        size = work.payload_bytes if work.request.op is Op.READ and status == 0 else 0
        if size:
            work.stage = Stage.SENDING
        else:
            del self._by_sequence[work.sequence]
            if work.offset is not None:
                export.space.free(work.offset)
        return Answer(Response.to(work.request, status), work.sequence, work.offset or 0, size)

    def sent(self, sequence: int) -> list[Action]:
        """The read payload of `sequence` has left."""
        work = self._by_sequence.get(sequence)
        if work is None or work.stage is not Stage.SENDING:
            return []
        del self._by_sequence[sequence]
        export = self._exports[work.request.export_id]
        if work.offset is not None:
            export.space.free(work.offset)
        return self._give_space(export)

    # -- for the shell -------------------------------------------------------------------------------------------
    def offered(self) -> list[Served]:
        return [export.served for export in self._exports.values()]

    def role_of(self, export_id: int) -> str:
        """The source of an export that we know."""
        return self._exports[export_id].served.role

    def counts(self) -> dict[str, dict[str, int]]:
        """For status, by name of the export."""
        return {
            export.served.name: {
                "in_flight": len(export.work),
                "at_source": sum(work.stage is Stage.AT_SOURCE for work in export.work.values()),
                "orphans": len(export.orphans),
                "arena_bytes": export.space.taken_bytes,
            }
            for export in self._exports.values()
        }


_FLAGS = {Op.WRITE: int(RequestFlag.FUA), Op.WRITE_ZEROES: int(RequestFlag.NO_UNMAP)}


def _refusal(request: Request, served: Served, v0: bool) -> tuple[int, str]:
    """Its status without asking the source, and why; 0 if the source may have it."""
    known = 0 if v0 else _FLAGS.get(request.op, 0)
    if request.flags & ~known:  # to ignore one could break a promise it stands for
        return EINVAL, f"{request.op.name} with flags {request.flags:#x}, known are {known:#x}"
    why = out_of_bounds(request.op, request.lba, request.blocks, served.record, limits.MAX_REQUEST_BYTES)
    if why is not None:
        return EINVAL, why
    if served.read_only and request.op in (Op.WRITE, Op.DISCARD, Op.WRITE_ZEROES):
        return EROFS, f"{request.op.name}, but it is read-only"
    return 0, ""


def _take_of(work: Work) -> Take:
    export_id = None if work.offset is None else work.request.export_id
    return Take(work.sequence, export_id, work.offset or 0, work.payload_bytes)


def _is_completion(item: object) -> bool:
    if not isinstance(item, list) or len(item) != 2:
        return False
    sequence, status = item
    return type(sequence) is int and type(status) is int and sequence > 0 and 0 <= status < 256
