"""Role `source.<export>`: one source, a few threads that read and write it, the lane to usb.

Order and fencing are host.source.core's, the work is host.source.executor's on a host.source.interface.Source. usb owns
the arena: this role maps what usb names, and lets go of an old one when its last operation has ended.
"""

import contextlib
import os
import time
from collections import Counter
from functools import partial
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

from bus.arena import Arena
from bus.books import ledger_of
from bus.envelope import Body, Kind
from bus.role import Role
from common import follow, limits, trace
from common.errors import MALFORMED, Gone, Refused, RoleExit, WireError
from common.iostats import IoStats
from common.wire import ExportRecord, Op
from host.source.core import Action, Complete, Job, SourceCore, Unmap
from host.source.executor import Executor
from host.source.interface import Source
from host.source.latch import Latch
from host.source.opening import open_source
from host.source.spec import Scheme, parse

_NAMES = {op: op.name.lower() for op in Op}  # for status


class SourceRole:
    """Handlers of one source role. `name` is the source as people write it."""

    def __init__(self, role: Role, record: ExportRecord, name: str, executor: Executor) -> None:
        self._role, self._record, self._name, self._executor = role, record, name, executor
        self._core = SourceCore(record)
        self._arenas: dict[int, Arena] = {}
        self._jobs: SimpleQueue[Job] = SimpleQueue()
        self._completions: list[list[int]] = []
        self._followed: dict[int, str] = {}  # by sequence of the present usb: ids, while I/Os are followed
        self._counts: Counter[str] = Counter()
        self._stats = IoStats(time.monotonic())
        self._draining = self._closed = False
        self._flushes = 0  # that a command asked for
        self._flushes_done = 0
        self._done = Lock()
        role.status, role.on_drain = self._status, self._drain
        role.method("flush", self._call_flush)
        for number in range(limits.SOURCE_THREADS):
            Thread(target=self._work, name=f"source {number}", daemon=True).start()
        self._usb = role.connect("usb", "data", self._hello, self._usb_arrived, self._from_usb)
        role.loop.before_wait(self._flush)
        role.ready()

    def _hello(self) -> Body:
        return {
            "export_id": self._record.export_id,
            "block_size": self._record.block_size,
            "size_bytes": self._record.size_bytes,
            "read_only": self._executor.source.read_only,
        }

    def _usb_arrived(self, generation: int) -> None:
        self._followed.clear()
        self._completions.clear()  # its predecessor's sequences: in the new one they are other requests
        self._do(self._core.peer(generation))

    def _from_usb(self, kind: Kind, body: Body) -> None:
        if kind is Kind.REQUESTS and self._draining:
            return  # usb keeps them for our successor
        if kind is Kind.REQUESTS:
            trace.point("source.requests.received")
            self._do(self._core.requests(body))
        elif kind is Kind.NOTE and isinstance(body, dict) and body.get("note") == "arena":
            self._map(str(body.get("owner")), body.get("generation"))
        elif kind is Kind.NOTE and isinstance(body, dict) and body.get("note") == "follow":
            if follow.on and len(self._followed) < limits.MAX_IN_FLIGHT:
                self._follow(body)
        else:
            raise WireError(f"{kind} is not for a source")

    def _map(self, owner: str, generation: object) -> None:
        if type(generation) is not int:
            raise WireError(f"an arena of generation {generation!r}")
        if generation != self._usb.peer_generation or generation in self._arenas:
            return
        try:
            arena = Arena.attach(self._role.runtime, owner, generation)
        except Gone as error:
            self._role.log.warning(f"{error}: waiting for what its successor names")
            return
        self._arenas[generation] = arena
        self._core.arena(generation, arena.size_bytes)

    def _follow(self, note: dict[str, Any]) -> None:
        try:
            self._followed |= {int(sequence): str(io) for sequence, io in note["ids"]}
        except MALFORMED as error:
            raise WireError(f"ids to follow: {type(error).__name__}: {error}") from None

    # -- work ----------------------------------------------------------------------------------------------------
    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            if type(action) is Job:
                self._counts[_NAMES[action.op]] += 1
                self._begin(action)
            elif type(action) is Complete:
                self._completions.append([action.sequence, action.status])
            elif type(action) is Unmap:
                self._arenas.pop(action.generation, None)

    def _begin(self, job: Job) -> None:
        """Here and now if nothing has to be waited for: a thread costs two switches, and breaks up a crowd."""
        began = time.monotonic()
        status = self._executor.do_now(job, self._arenas[job.generation].memory)
        if status is None:
            return self._jobs.put(job)
        trace.point("source.thread.working")
        now = time.monotonic()
        self._finished(job, status, now - began, now)

    def _work(self) -> None:
        """A thread's life. The arena of a job stays mapped until the loop has heard of its end."""
        while True:
            job = self._jobs.get()
            began = time.monotonic()
            trace.point("source.thread.working")
            status = self._executor.do(job, self._arenas[job.generation].memory)
            trace.point("source.thread.done")
            now = time.monotonic()
            self._role.loop.post(partial(self._finished, job, status, now - began, now))

    def _finished(self, job: Job, status: int, took_s: float, now: float) -> None:
        trace.point("source.finished")
        if self._followed and job.sequence in self._followed:
            io = self._followed.pop(job.sequence)
            follow.step(io, "done", op=job.op.name.lower(), status=status, took_us=round(took_s * 1e6))
        self._stats.done(job.op, job.size_bytes, took_s, bool(status), now)
        if status:
            self._counts["failed"] += 1
            if self._counts["failed"] <= 10 or self._executor.failed:
                self._role.log.error(
                    f"{job.op.name} at {job.file_offset}: errno {status}; {self._executor.failed or ''}"
                )
        self._do(self._core.finished(job, status))
        if self._draining:
            self._drain()

    def _flush(self) -> None:
        batch, self._completions = self._completions, []
        for start in range(0, len(batch), limits.MAX_BATCH):
            # False: usb is dead. Its successor has never heard of these.
            self._usb.send(Kind.COMPLETIONS, batch[start : start + limits.MAX_BATCH])
            trace.point("source.completions.sent")

    def _drain(self) -> None:
        """Leave when nothing runs: a write that is cut short leaves a block half new, which is allowed but not nice."""
        self._draining = True
        if not self._core.running and not self._closed:
            self._closed = True
            self._flush()
            with contextlib.suppress(OSError):  # an overlay settles its map; what fails was never flushed
                self._executor.source.close()
            self._role.loop.stop(RoleExit.DRAINED)

    def _call_flush(self, arguments: dict[str, Any]) -> dict[str, int]:
        """fdatasync from a thread of its own; `flushed` of the status reaches `asked` when it has succeeded."""
        self._flushes += 1
        asked = self._flushes
        job = Job(0, 0, Op.FLUSH, 0, 0, 0)

        def run() -> None:
            if self._executor.do(job, memoryview(b"")) == 0:
                with self._done:
                    self._flushes_done = max(self._flushes_done, asked)

        Thread(target=run, name="flush", daemon=True).start()
        return {"generation": self._role.generation, "asked": asked}

    def _status(self) -> dict[str, Any]:
        return {
            "unflushed_bytes": self._executor.ledger.unflushed,
            "flushed": self._flushes_done,
            **self._stats.status(time.monotonic()),
            "in_flight": self._core.running + self._core.waiting,
            "path": self._name,
            "grown_to_bytes": grown(self._name, self._record.size_bytes),
            "state": "failed" if self._executor.failed else "live",
            "reason": self._executor.failed or "",
            "read_only": self._executor.source.read_only,
            "running": self._core.running,
            "waiting": self._core.waiting,
            "counts": dict(self._counts),
        }


def grown(place: str, announced_bytes: int) -> int:
    """The size of a file that has become larger than what is served of it; else 0."""
    spec = parse(place)
    size_bytes = 0
    if spec.scheme is Scheme.FILE:
        with contextlib.suppress(OSError):  # gone from its place: nothing of it grows
            size_bytes = os.stat(spec.body).st_size  # 0 of a block device
    return size_bytes if size_bytes > announced_bytes else 0


def start(role: Role) -> None:
    args = role.args
    try:
        record = ExportRecord(int(args["export_id"]), int(args["block_size"]), int(args["size_bytes"]))
        path, read_only = str(args["path"]), bool(args["read_only"])
    except (KeyError, TypeError, ValueError, WireError) as error:
        raise Refused(f"{role.name}: its arguments are not a source's: {type(error).__name__}: {error}") from None
    try:
        source = open_source(parse(path), read_only)
    except (FileNotFoundError, PermissionError) as error:
        raise Refused(f"{path}: {error.strerror}: check the path and its permissions") from None
    check(source, path, record, str(args.get("identity") or source.identity))
    executor = Executor(source, Latch.of(role.runtime, record.export_id), ledger_of(role.runtime, record.export_id))
    SourceRole(role, record, path, executor)


def check(source: Source, name: str, record: ExportRecord, identity: str) -> None:
    """Is it what was announced? Refused: it must never silently become another disk."""
    if source.geometry.size_bytes < record.size_bytes:  # one that has grown serves on what was announced of it
        raise Refused(
            f"{name}: has {source.geometry.size_bytes} bytes, but {record.size_bytes} were announced: "
            "it was changed: serve it anew, as another disk"
        )
    if source.identity != identity:
        raise Refused(f"{name}: is now {source.identity}, but was {identity}: serve it anew, as another disk")
    if record.block_size % source.geometry.block_size:
        raise Refused(
            f"{name}: its blocks are {source.geometry.block_size} bytes, more than the {record.block_size} announced: "
            f"serve it with --block-size {source.geometry.block_size}"
        )
