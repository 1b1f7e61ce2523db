"""Deliberate faults in the product, one or more for each invariant: what a simulator must find to be worth its time.

Each is a function that puts the fault in and returns how to take it out. tests/sim/test_sim.py shows that each is found
within a bounded number of seeds; `python -m tests.sim.mutations` says how many it took.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import bus.lane
import gadget.ublk.core
import gadget.ublk.role
import gadget.usb.core
import gadget.usb.role
import host.source.core
import host.usb.core
from bus.envelope import Envelope, Kind
from common.wire import Op
from gadget.ublk.core import Commit, QueueCore
from gadget.usb.core import Stage
from gadget.usb.link import Link
from host.usb.core import Stage as HostStage
from tests.sim.mutations_below import SETTINGS, Mutation
from tests.sim.run import Run
from tests.sim.setting import PLAIN
from tests.sim.world import Violation


def no_fence() -> Any:
    """Gadget usb sends a new queue's requests while its predecessor's are still on the wire (invariant 3)."""
    return patch.object(gadget.usb.core._Export, "fenced", lambda self: False)


def epoch_ignored() -> Any:
    """What was on the wire is not asked again in a new link epoch (invariant 2)."""

    def new_epoch(self: Any) -> None:
        self.epoch += 1
        self.data_moved = False
        self._agreed = frozenset()
        for export in self._exports.values():
            export.on_wire.clear()

    return patch.object(gadget.usb.core.UsbCore, "_new_epoch", new_epoch)


def replay_forgotten() -> Any:
    """A queue does not tell a new usb what is outstanding (invariant 2)."""
    return patch.object(gadget.ublk.role.Queue, "_usb_arrived", lambda self, generation: None)


def replay_to_source_forgotten() -> Any:
    """Host usb does not give a new source what its predecessor had (invariant 2)."""
    original = host.usb.core.UsbCore.source_arrived

    def source_arrived(self: Any, role: str, generation: int, record: Any, read_only: bool) -> Any:
        export = self._exports[record.export_id]
        lost = [w for w in export.work.values() if w.stage is HostStage.AT_SOURCE]
        actions = original(self, role, generation, record, read_only)
        return [a for a in actions if getattr(a, "item", [0])[0] not in {w.sequence for w in lost}]

    return patch.object(host.usb.core.UsbCore, "source_arrived", source_arrived)


def host_orphans_ignored() -> Any:
    """The host starts requests of a new attachment while old ones are still at the source (invariant 3)."""
    original = host.usb.core.UsbCore.detach

    def detach(self: Any) -> None:
        original(self)
        for export in self._exports.values():
            for offset in export.orphans.values():
                if offset is not None:
                    export.space.free(offset)
            export.orphans.clear()

    return patch.object(host.usb.core.UsbCore, "detach", detach)


def source_fence_ignored() -> Any:
    """A source starts requests of a new usb while those of the dead one run (invariant 3)."""

    def start(self: Any) -> Any:
        jobs = list(self._waiting)
        self._running |= {(job.generation, job.sequence) for job in self._waiting}
        self._waiting.clear()
        return jobs

    return patch.object(host.source.core.SourceCore, "_start", start)


def addressee_ignored() -> Any:
    """Lanes take messages for and of other generations (identity)."""

    def decode(self: Any, data: bytes) -> Any:
        return Envelope.decode(data)

    def take(self: Any, identity: bytes, envelope: Any) -> None:
        known = self._peers.get(envelope.sender)
        if envelope.kind is not Kind.HELLO and known is not None:
            self._on_message(envelope.sender, envelope.kind, envelope.body)
        else:
            original(self, identity, envelope)

    def client_take(self: Any, envelope: Any) -> None:
        if envelope.kind is Kind.WELCOME:
            return original_client(self, envelope)
        self._on_message(envelope.kind, envelope.body)

    original, original_client = bus.lane.LaneServer._take, bus.lane.LaneClient._take
    return _both(
        patch.object(bus.lane._Lane, "_decode", decode),
        _both(
            patch.object(bus.lane.LaneServer, "_take", take), patch.object(bus.lane.LaneClient, "_take", client_take)
        ),
    )


def space_given_back_early() -> Any:
    """The host gives a read payload's space away before it has been sent (invariant 4: a reused slot)."""
    original = host.usb.core.UsbCore._answer

    def answer(self: Any, export: Any, work: Any, status: int) -> Any:
        action = original(self, export, work, status)
        if work.stage is HostStage.SENDING and work.offset is not None:
            export.space.free(work.offset)
            work.offset = None
        return action

    return patch.object(host.usb.core.UsbCore, "_answer", answer)


def flush_not_done() -> Any:
    """The host answers a FLUSH without giving it to the source (invariant 1)."""
    original = host.usb.core.UsbCore._ready

    def ready(self: Any, export: Any, work: Any) -> Any:
        if work.request.op is Op.FLUSH:
            return iter([self._answer(export, work, 0)])
        return original(self, export, work)

    return patch.object(host.usb.core.UsbCore, "_ready", ready)


def fua_forgotten() -> Any:
    """A source answers a FUA write that is not on stable storage (invariant 1)."""
    original = host.source.core.SourceCore.requests

    def requests(self: Any, body: Any) -> Any:
        return original(self, [[*item[:5], 0] for item in body])

    return patch.object(host.source.core.SourceCore, "requests", requests)


def write_answered_early() -> Any:
    """A source answers writes when they begin: a FLUSH overtakes them, a kill loses them (invariant 1)."""
    original = host.source.core.SourceCore.requests

    def requests(self: Any, body: Any) -> Any:
        actions = original(self, body)
        done = [
            host.source.core.Complete(a.sequence, 0)
            for a in actions
            if isinstance(a, host.source.core.Job) and a.op is Op.WRITE
        ]
        return [*actions, *done]

    return patch.object(host.source.core.SourceCore, "requests", requests)


def completes_before_filled() -> Any:
    """A read is completed when its Response comes, not when its payload has come (invariant 4)."""

    original = gadget.usb.core.UsbCore._asked

    def answered(self: Any, response: Any) -> Any:
        export, pending = original(self, response)
        if response.op is Op.READ and response.status == 0:
            pending.stage = Stage.FILLING
            fill = gadget.usb.core.Fill(pending, self._payload(export, pending))
            return [fill, *self._end(export, pending, 0)]
        return self._judged(export, pending, response.status)

    return patch.object(gadget.usb.core.UsbCore, "answered", answered)


def writes_done_at_once() -> Any:
    """Gadget usb completes a write when it is sent (invariant 1)."""
    original = gadget.usb.core.UsbCore.left

    def left(self: Any, pending: Any, epoch: int) -> Any:
        done = original(self, pending, epoch)
        return done or [gadget.usb.core.Done(pending.export, pending.arena, pending.sequence, 0)]

    return patch.object(gadget.usb.core.UsbCore, "left", left)


def parking_forgotten() -> Any:
    """What waits while the link is down fails with EIO (invariant 2)."""
    original = gadget.usb.core.UsbCore.ask

    def ask(self: Any, role: str, generation: int, body: Any) -> Any:
        if self.link is not Link.ONLINE:
            return [gadget.usb.core.Done(role, generation, item[0], 5) for item in body]
        return original(self, role, generation, body)

    return patch.object(gadget.usb.core.UsbCore, "ask", ask)


def double_completion() -> Any:
    """A queue commits what it does not know (any more)."""

    def complete(self: Any, sequence: int, status: int) -> Any:
        taken = self._outstanding.get(sequence)
        if taken is None:
            return None
        self._busy_tags.discard(taken.tag)
        return Commit(taken.tag, taken.blocks * self._block_size if taken.op in (Op.READ, Op.WRITE) else 0)

    return patch.object(QueueCore, "complete", complete)


def tag_is_identity() -> Any:
    """A queue's request is known by its tag, and an orphan's answer is told to the successor (identity, section 2)."""
    original = QueueCore.take

    def take(self: Any, tag: int, *rest: Any) -> Any:
        self._next = tag + 1
        return original(self, tag, *rest)

    return _both(
        patch.object(QueueCore, "take", take),
        _both(
            patch.object(gadget.usb.role.Usb, "_do", _do_without_generation),
            patch.object(gadget.usb.core.UsbCore, "_end", _end_orphans_too),
        ),
    )


def _do_without_generation(self: Any, actions: Any) -> None:
    for action in actions:
        if isinstance(action, gadget.usb.core.Done):
            self._completions[action.export].append([action.sequence, action.status])
        else:
            _original_do(self, [action])


def _end_orphans_too(self: Any, export: Any, pending: Any, status: int) -> Any:
    del export.on_wire[pending.request.request_id]
    return [gadget.usb.core.Done(pending.export, pending.arena, pending.sequence, status)]


_original_do = gadget.usb.role.Usb._do


def arena_reused() -> Any:
    """A queue's successor takes the arena of its predecessor (section 2: fresh arenas)."""
    from tests.sim.roles import SimArena
    from tests.sim.run import here

    original = SimArena.create

    def create(runtime: Any, owner: str, generation: int, size_bytes: int) -> Any:
        old = [m for k, m in here().arenas.items() if k[:2] == (runtime.side, owner) and len(m) == size_bytes]
        arena = original(runtime, owner, generation, size_bytes)
        if old:
            here().arenas[runtime.side, owner, generation] = old[0]
            return SimArena(old[0], generation)
        return arena

    return patch.object(SimArena, "create", create)


def space_not_given_back() -> Any:
    """The host's arena loses the space of what was at a source when the attachment ended (resources)."""
    original = host.usb.core.UsbCore._completed

    def completed(self: Any, export: Any, sequence: int, status: int) -> Any:
        if sequence in export.orphans:
            del export.orphans[sequence]
            return self._release(export)
        return original(self, export, sequence, status)

    return patch.object(host.usb.core.UsbCore, "_completed", completed)


@contextmanager
def _both(one: Any, other: Any) -> Iterator[None]:
    with one, other:
        yield


# Not here, because what they break is healed by something else within a second, or is guarded twice: a new gadget usb
# that does not halt its endpoint (STATUS tells that the exports are not in force), gadget usb taking `filled` of an old
# epoch (its transfers are disowned before), a watchdog ordering a successor before the death of what it has killed (it
# adopts whoever has the name), a source telling a new usb what its predecessor asked for (the sequences of a young usb
# are small, those of an old one large: they would have to meet).
MUTATIONS: list[Mutation] = [
    no_fence,
    epoch_ignored,
    replay_forgotten,
    replay_to_source_forgotten,
    host_orphans_ignored,
    source_fence_ignored,
    addressee_ignored,
    space_given_back_early,
    flush_not_done,
    fua_forgotten,
    write_answered_early,
    completes_before_filled,
    writes_done_at_once,
    parking_forgotten,
    double_completion,
    tag_is_identity,
    arena_reused,
    space_not_given_back,
    *SETTINGS,
]


def found_at(mutation: Mutation, seeds: range) -> tuple[int, str] | None:
    """The first seed that finds it, and what it says; None if none does."""
    for seed in seeds:
        with mutation():
            run = Run(seed, setting=SETTINGS.get(mutation, PLAIN))
            try:
                run.execute()
            except Violation as violation:
                return seed, str(violation)
    return None


def main() -> None:
    only = os.environ.get("ONLY", "").split()
    for mutation in (m for m in MUTATIONS if not only or m.__name__ in only):
        began = time.monotonic()
        found = found_at(mutation, range(int(os.environ.get("N") or 150)))
        took = time.monotonic() - began
        told = "NOT FOUND" if found is None else f"seed {found[0]}: {found[1][:90]}"
        print(f"{mutation.__name__:28} {took:5.1f} s  {told}")


if __name__ == "__main__":
    main()
