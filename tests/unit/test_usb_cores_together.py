"""The usb cores of both sides with a link between them: whatever order things come in, under hypothesis, which shrinks.

One export; a block of the disk has one request at a time, so what a read may return is known exactly. The link keeps
order in each direction and loses all that it holds when it is cut. A queue that dies leaves its arena to usb, and its
successor asks again from another slot; what a dead source was at may have landed or not; a job of an attachment that is
over lands when it lands. Both wires: v0's payloads are known by their order alone, v1's say whose they are.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from errno import EIO

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from common.wire import ExportRecord, Op, Request
from common.wire_v1 import Record, RequestFlag
from gadget.usb import core as gadget
from gadget.usb.link import Event, Link
from host.usb import core as host

BLOCK, DEPTH, EXPORT = 4096, 6, 0x11
BLOCKS = 2  # of the disk: few, so that the same one is written again and again
DISK = host.Served(ExportRecord(EXPORT, BLOCK, BLOCKS * BLOCK), "disk", False)
QUEUE, SOURCE = "queue.11", DISK.role
OPS = st.sampled_from((Op.READ, Op.WRITE, Op.WRITE, Op.WRITE, Op.FLUSH))
SETTINGS = settings(
    max_examples=200,
    stateful_step_count=40,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
Gadget = gadget.Action
Host = host.Action


@dataclass(eq=False)
class Io:
    """What a user of the device waits for. `version` is what a write writes."""

    op: Op
    lba: int
    version: int
    fua: bool = False
    slot: int = 0


@dataclass(frozen=True)
class Job:
    """What a source is at. `offset` is where the host's arena has its bytes."""

    sequence: int
    op: Op
    offset: int
    lba: int


Fault = Callable[[pytest.MonkeyPatch], None]


class Quick(Enum):
    """What does not stay on the link until a rule moves it: sources and deaths decide the more."""

    NOTHING = auto()
    REQUESTS = auto()
    ALL = auto()


class TwoSides(RuleBasedStateMachine):
    @initialize(v0=st.booleans(), quick=st.sampled_from(Quick), blocks=st.integers(1, BLOCKS))
    def begin(self, v0: bool, quick: Quick, blocks: int) -> None:
        self.v0, self.quick, self.blocks = v0, quick, blocks
        self.disk = {lba: -2 - lba for lba in range(BLOCKS)}  # by block, the version it has
        self.may_be = {lba: {version} for lba, version in self.disk.items()}  # after each write that has ended
        self.flushed = dict(self.disk)  # at the last FLUSH
        self.versions = 0
        self.queue_generation, self.sequence = 1, 0
        self.waits: dict[int, Io] = {}  # by the present queue's sequence
        self.arenas: dict[int, dict[int, int]] = {1: {}}  # by queue generation: what a slot has
        self.memory: dict[int, int] = {}  # the host's arena
        self.source_generation = 1
        self.running: list[Job] = []
        self.host = host.UsbCore()
        self.host.offer([DISK])
        self.host.source_arrived(SOURCE, 1, DISK.record, False)
        self.new_gadget()
        self.plug()

    # -- the link ----------------------------------------------------------------------------------------------------
    def lose(self) -> None:
        self.plugged = False
        self.requests: deque[tuple[Request, bool]] = deque()
        self.payloads_in: deque[gadget.Pending] = deque()  # of writes, in the order of their Requests
        self.takes: deque[host.Take] = deque()
        self.responses: deque[host.Answer] = deque()
        self.payloads_out: deque[host.Answer] = deque()  # of reads, in the order of their Responses
        self.fills: deque[gadget.Pending] = deque()

    def new_gadget(self) -> None:
        self.lose()
        self.gadget = gadget.UsbCore()
        self.gadget.queue_arrived(QUEUE, self.queue_generation, DISK.record, DEPTH, BLOCK)

    def plug(self) -> None:
        self.lose()
        self.plugged = True
        self.host.attach(0 if self.v0 else 1)
        self.gadget.on(Event.ENABLED)
        self.gadget.v0 = self.v0
        self.gadget.on(Event.CONFIGURED)
        self.gadget.agree(frozenset({EXPORT}))
        self.gadget.on(Event.AGREED)
        self.told(self.gadget.releasable())

    # -- users -------------------------------------------------------------------------------------------------------
    def idle(self) -> list[int]:
        busy = {io.lba for io in self.waits.values()}
        return [lba for lba in range(self.blocks) if lba not in busy]

    @precondition(lambda self: self.idle())
    @rule(op=OPS, which=st.integers(0, BLOCKS - 1), fua=st.booleans())
    def submit(self, op: Op, which: int, fua: bool) -> None:
        idle = self.idle()
        lba = idle[which % len(idle)]
        self.versions += 1
        self.ask([Io(op, lba, self.versions, fua and op is Op.WRITE)])

    def ask(self, ios: Iterable[Io]) -> None:
        """As a queue does; slots are free in another order for each of its incarnations."""
        for io in ios:
            used = {other.slot for other in self.waits.values()}
            slots = (number * 5 + self.queue_generation for number in range(DEPTH))
            io.slot = next(slot % DEPTH for slot in slots if slot % DEPTH not in used)
            self.sequence += 1
            self.waits[self.sequence] = io
            self.arenas[self.queue_generation][io.slot] = io.version if io.op is Op.WRITE else -1
            where = (0, 0) if io.op is Op.FLUSH else (io.lba, 1)
            item = [self.sequence, int(io.op), io.slot, *where, int(RequestFlag.FUA) if io.fua else 0]
            assert self.gadget.ask(QUEUE, self.queue_generation, [item]) == []

    def done(self, sequence: int, status: int) -> None:
        io = self.waits.pop(sequence)
        if io.op is Op.WRITE:
            self.may_be[io.lba] = {io.version} if status == 0 else self.may_be[io.lba] | {io.version}
            if io.fua and status == 0:
                assert self.flushed[io.lba] == io.version, "a FUA write that is not on stable storage"
        elif io.op is Op.READ and status == 0:
            got = self.arenas[self.queue_generation][io.slot]
            assert got in self.may_be[io.lba], f"a read of block {io.lba} gave {got}, not of {self.may_be[io.lba]}"
        elif io.op is Op.FLUSH and status == 0:
            quiet = {lba for lba in self.disk if all(other.lba != lba for other in self.waits.values())}
            for lba in quiet:
                assert self.flushed[lba] in self.may_be[lba], f"block {lba} was not flushed"

    # -- what moves --------------------------------------------------------------------------------------------------
    def told(self, actions: Iterable[Gadget]) -> None:
        for action in actions:
            match action:
                case gadget.Done(arena=arena, sequence=sequence, status=status):
                    if arena == self.queue_generation:
                        self.done(sequence, status)
                case gadget.Fill(pending=pending):
                    self.fills.append(pending)
                case gadget.Release(arena=arena):
                    assert arena != self.queue_generation
                    del self.arenas[arena]
                case _:
                    raise AssertionError(action)

    def told_host(self, actions: Iterable[Host]) -> None:
        for action in actions:
            match action:
                case host.Take():
                    self.takes.append(action)
                case host.Dispatch(item=[sequence, op, offset, lba, _, _]):
                    assert all(job.sequence != sequence for job in self.running), "given twice"
                    self.running.append(Job(sequence, Op(op), offset, lba))
                case host.Answer():
                    self.responses.append(action)

    def may_be_sent(self) -> bool:
        return any(export.waiting and not export.fenced() for export in self.gadget._exports.values())

    def dispatch(self) -> None:
        for send in list(self.gadget.dispatch()):
            self.requests.append((send.pending.request, send.payload_bytes > 0))
            if send.payload_bytes:
                self.payloads_in.append(send.pending)

    def request_arrives(self) -> None:
        request, has_payload = self.requests.popleft()
        if self.v0:
            return self.told_host(self.host.received(request))
        r = request
        size = BLOCK if has_payload else 0
        self.told_host(
            self.host.requested(Record(r.op, r.flags, r.request_id, r.export_id, r.lba, r.blocks, 0, size))[1]
        )

    def write_payload_arrives(self) -> None:
        pending = self.payloads_in.popleft()
        request, asked = pending.request, self.host.request_of
        take = next(t for t in self.takes if self.v0 or asked(t.sequence).request_id == request.request_id)
        self.takes.remove(take)
        assert asked(take.sequence).lba == request.lba, "another Request's payload"
        self.memory[take.offset] = self.arenas[pending.arena][pending.offset // BLOCK]
        self.told(self.gadget.left(pending, self.gadget.epoch))
        self.told_host(self.host.taken(take.sequence))

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 20), fails=st.integers(0, 15))
    def complete(self, which: int, fails: int) -> None:
        job = self.running.pop(which % len(self.running))
        status = 0 if fails else EIO
        if status == 0:
            self.land(job)
        self.told_host(self.host.completed(SOURCE, [[job.sequence, status]]))

    def land(self, job: Job) -> None:
        if job.op is Op.READ:
            self.memory[job.offset] = self.disk[job.lba]
        elif job.op is Op.WRITE:
            self.disk[job.lba] = self.memory[job.offset]
            self.flushed[job.lba] = self.disk[job.lba] if self.is_fua(job) else self.flushed[job.lba]
        else:
            self.flushed = dict(self.disk)

    def is_fua(self, job: Job) -> bool:
        return any(io.fua and io.version == self.disk[job.lba] for io in self.waits.values())

    def response_arrives(self) -> None:
        answer = self.responses.popleft()
        r = answer.response
        if self.v0:
            if answer.size_bytes:
                self.payloads_out.append(answer)
            return self.told(self.gadget.answered(r))
        record = Record(r.op, r.status, r.request_id, r.export_id, r.lba, r.blocks, 0, answer.size_bytes)
        self.told(self.filled(self.gadget.arrived(record), answer))

    def filled(self, actions: list[Gadget], answer: host.Answer) -> list[Gadget]:
        """v1: the payload came with the Response."""
        for action in actions:
            if isinstance(action, gadget.Copy):
                self.arenas[action.pending.arena][action.pending.offset // BLOCK] = self.memory[answer.offset]
        if answer.size_bytes:
            self.told_host(self.host.sent(answer.sequence))
        return [action for action in actions if not isinstance(action, gadget.Copy)]

    def read_payload_arrives(self) -> None:
        answer, pending = self.payloads_out.popleft(), self.fills.popleft()
        assert answer.response.request_id == pending.request.request_id, "another Response's payload"
        self.arenas[pending.arena][pending.offset // BLOCK] = self.memory[answer.offset]
        self.told_host(self.host.sent(answer.sequence))
        self.told(self.gadget.filled(pending, self.gadget.epoch))

    # -- what goes wrong ---------------------------------------------------------------------------------------------
    @rule(who=st.sampled_from(("queue", "queue", "queue", "source", "gadget usb", "cable")), lands=st.integers(0, 63))
    def dies(self, who: str, lands: int) -> None:
        match who:
            case "queue":
                self.kill_queue()
            case "source":
                self.kill_source(lands)
            case "gadget usb":
                self.kill_gadget_usb()
            case _ if self.plugged:
                self.cut()

    def cut(self) -> None:
        self.lose()
        self.gadget.on(Event.LOST)
        self.told(self.gadget.releasable())
        self.host.detach()

    @precondition(lambda self: not self.plugged)
    @rule()
    def reconnect(self) -> None:
        self.plug()

    def kill_queue(self) -> None:
        self.queue_generation += 1
        self.arenas[self.queue_generation] = {}
        self.gadget.queue_arrived(QUEUE, self.queue_generation, DISK.record, DEPTH, BLOCK)
        self.told(self.gadget.releasable())
        back, self.waits = list(self.waits.values()), {}
        self.ask(back)

    def kill_gadget_usb(self) -> None:
        """Its arenas of dead queues go with it."""
        self.host.detach()
        self.arenas = {self.queue_generation: self.arenas[self.queue_generation]}
        self.new_gadget()
        back, self.waits = list(self.waits.values()), {}
        self.ask(back)

    def kill_source(self, lands: int) -> None:
        """Of what it was at some had landed."""
        for number, job in enumerate(self.running):
            if lands >> number % 6 & 1 and job.op is not Op.READ:
                self.land(job)
        self.running = []
        self.source_generation += 1
        self.told_host(self.host.source_arrived(SOURCE, self.source_generation, DISK.record, False))

    # -- what must hold ----------------------------------------------------------------------------------------------
    @invariant()
    def what_runs_has_space_of_its_own(self) -> None:
        quick = getattr(self, "quick", Quick.NOTHING)
        while quick is not Quick.NOTHING and (steps := self.moving(quick is Quick.REQUESTS)):
            steps[0]()
        held = [job.offset for job in getattr(self, "running", ()) if job.op is not Op.FLUSH]
        assert len(held) == len(set(held))

    def moving(self, requests_only: bool = False) -> list[Callable[[], None]]:
        """What can happen next on the link."""
        steps: list[tuple[object, Callable[[], None]]] = [
            (self.plugged and self.may_be_sent(), self.dispatch),
            (self.requests, self.request_arrives),
            (self.payloads_in and self.takes, self.write_payload_arrives),
            (self.responses, self.response_arrives),
            (self.payloads_out and self.fills, self.read_payload_arrives),
        ]
        return [step for ready, step in steps[: 3 if requests_only else None] if ready]

    @precondition(lambda self: self.moving() and self.quick is not Quick.ALL)
    @rule(which=st.integers(0, 4))
    def one_moves_on(self, which: int) -> None:
        steps = self.moving()
        steps[which % len(steps)]()

    @precondition(lambda self: self.moving() and self.quick is not Quick.ALL)
    @rule()
    def all_moves_on(self) -> None:
        """What the sources are at stays there."""
        for _ in range(4 * DEPTH):
            for step in self.moving():
                step()

    def teardown(self) -> None:
        """It comes to rest with everything answered, and nothing is held back."""
        if not hasattr(self, "host"):
            return
        if not self.plugged:
            self.plug()
        for _ in range(4 * DEPTH):
            if self.moving():
                self.all_moves_on()
            if self.running:
                self.complete(0, 1)
        assert self.waits == {}, "never answered"
        assert self.gadget.counts() == {QUEUE: (0, 0)} and self.gadget.link is Link.ONLINE
        assert not any(self.host.counts()["disk"].values()), self.host.counts()
        assert set(self.arenas) == {self.queue_generation}, "arenas of dead queues are never let go"
        for lba, version in self.disk.items():
            assert version in self.may_be[lba], f"block {lba} is {version} in the end, not of {self.may_be[lba]}"


def test_whatever_comes_in_which_order_each_io_ends_with_its_own_bytes() -> None:
    run_state_machine_as_test(TwoSides, settings=SETTINGS)


def _no_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gadget._Export, "fenced", lambda self: False)


def _orphans_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    original = host.UsbCore.detach

    def detach(self: host.UsbCore) -> None:
        original(self)
        for export in self._exports.values():
            export.orphans.clear()

    monkeypatch.setattr(host.UsbCore, "detach", detach)


def _space_given_back_early(monkeypatch: pytest.MonkeyPatch) -> None:
    original = host.UsbCore._answer

    def answer(self: host.UsbCore, export: host._Export, work: host.Work, status: int) -> host.Answer:
        action = original(self, export, work, status)
        if work.stage is host.Stage.SENDING and work.offset is not None:
            export.space.free(work.offset)
            work.offset = None
        return action

    monkeypatch.setattr(host.UsbCore, "_answer", answer)


def _new_epoch_asks_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    original = gadget.UsbCore._new_epoch

    def new_epoch(self: gadget.UsbCore) -> None:
        for export in self._exports.values():
            export.on_wire.clear()
        original(self)

    monkeypatch.setattr(gadget.UsbCore, "_new_epoch", new_epoch)


@pytest.mark.parametrize("fault", [_orphans_forgotten, _new_epoch_asks_nothing_again])
def test_a_deliberate_fault_is_found(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    quick = settings(SETTINGS, report_multiple_bugs=False, phases=[Phase.generate])
    with pytest.raises(AssertionError):
        run_state_machine_as_test(TwoSides, settings=quick)


@pytest.mark.parametrize("v0", [True, False])
def test_the_machine_tells_an_old_write_that_lands_after_a_newer_one(v0: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes so many right steps that seconds of search do not find it."""
    _no_fence(monkeypatch)
    sides = TwoSides()
    sides.begin(v0, Quick.ALL, 1)
    for step in (
        lambda: sides.submit(Op.WRITE, 0, False),
        sides.kill_queue,
        lambda: sides.complete(1, 1),  # of the new queue
        lambda: sides.submit(Op.WRITE, 0, False),
        lambda: sides.complete(1, 1),
        lambda: sides.complete(0, 1),  # of the dead one
    ):
        step()
        sides.what_runs_has_space_of_its_own()
    with pytest.raises(AssertionError, match="block 0 is 1 in the end"):
        sides.teardown()


@pytest.mark.parametrize("v0", [True, False])
def test_the_machine_tells_bytes_of_another_read(v0: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    _space_given_back_early(monkeypatch)
    sides = TwoSides()
    sides.begin(v0, Quick.REQUESTS, 2)
    for _ in range(2):
        sides.submit(Op.READ, 0, False)
        sides.what_runs_has_space_of_its_own()
        sides.complete(0, 1)
    with pytest.raises(AssertionError, match="a read of block 0 gave -3"):
        sides.teardown()
