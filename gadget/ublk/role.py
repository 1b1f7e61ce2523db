"""Role `queue.<export>`: one ublk device, its io_uring and its payload arena. Recovery is the only way it starts.

The main thread opens, FETCHes and runs the loop; START_DEV or END_USER_RECOVERY, which wait for it, go from a thread of
their own. Decisions are gadget.ublk.core's (requests) and gadget.ublk.control.plan's (what to do with what is there).
A device that is smaller than its export has become is resized, where the driver can.
Also here: `settle`, `scan` and `retire`, which run in disposable processes because they may block.
"""

import errno
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from bus.arena import Arena, slot_bytes
from bus.envelope import Body, Kind
from bus.role import Role
from bus.runtime import Runtime
from common import follow, limits, trace
from common.errors import Gone, Refused, WireError
from common.iostats import IoStats
from common.wire import Op
from common.wire_v1 import RequestFlag
from gadget.ublk.abi import BlockOp, Feature, IoFlag
from gadget.ublk.control import RECOVERABLE, WISHED, Control, DeviceInfo, Plan, plan
from gadget.ublk.core import Commit, QueueCore, parse_completions
from gadget.ublk.device import QueueDevice, settle_queue_limits
from gadget.ublk.drain import Drain
from gadget.ublk.mark import ownership_mark
from gadget.ublk.offer import params_for
from gadget.ublk.partitions import make_known

_OPS: dict[int, Op] = {
    BlockOp.READ: Op.READ,
    BlockOp.WRITE: Op.WRITE,
    BlockOp.FLUSH: Op.FLUSH,
    BlockOp.DISCARD: Op.DISCARD,
    BlockOp.WRITE_ZEROES: Op.WRITE_ZEROES,
}
_RETRY_S = 0.003  # while the kernel tears down the dead owner's ring (measured: 4 ms), or devtmpfs makes a node


class Queue:
    """Handlers of a queue role. `_waits_for` says, for status, what a start that is not through hangs on."""

    def __init__(self, role: Role) -> None:
        self._role, args = role, role.args
        self._ublk_id, self._export_id = int(args["ublk_id"]), int(args["export_id"])
        self._mark = ownership_mark(role.runtime.instance, self._export_id)
        self._block_size, self._size_bytes = int(args["block_size"]), int(args["size_bytes"])
        self._depth, self._max_io = int(args["depth"]), int(args["max_io_bytes"])
        self._waits_for = "the ublk driver"
        self._control = Control()
        self._stats = IoStats(time.monotonic())
        self._taken: list[tuple[float, int] | None] = []  # by tag: when, and which operation
        self._batch: list[list[int]] = []
        self._device: QueueDevice | None = None
        role.status = self._status
        role.loop.before_wait(self._flush)
        role.on_watchdog(self._ask_settle_again, self._from_watchdog)
        self._settling = self._committed = False
        self._flags = 0  # of the device: Feature bits
        self._drain = Drain(role, self._ublk_id, lambda: Control())
        role.on_drain = lambda: self._drain.begin(self._can_quiesce())
        self._take_device()

    # -- the device: recovery of whatever is there ---------------------------------------------------------------
    def _take_device(self) -> None:
        try:
            info = self._control.find(self._ublk_id)
        except FileNotFoundError:
            return self._again(self._take_device, f"/dev/ublkb{self._ublk_id} of before, deleted but still held open")
        match plan(info, self._mark):
            case Plan.ADD:
                self._add()
            case Plan.RECREATE:
                self._control.delete_async(self._ublk_id)
                self._again(self._take_device, "the dead device to be deleted")
            case Plan.RECOVER if info is not None:
                self._recover(info)
            case _:
                raise Refused(f"/dev/ublkb{self._ublk_id}: belongs to another program or export: not touched")

    def _add(self) -> None:
        params = params_for(self._role.args)
        try:
            wished = RECOVERABLE | self._control.features() & WISHED
            self._control.add(self._ublk_id, self._depth, self._max_io, self._mark, wished)
        except FileExistsError:
            return self._again(self._take_device, f"ublk device number {self._ublk_id} to become free")
        self._flags = int(wished)
        self._control.set_params(self._ublk_id, params)
        self._attach(self._control_thread("START_DEV", lambda c: c.start(self._ublk_id, os.getpid())))

    def _recover(self, info: DeviceInfo) -> None:
        params = self._control.get_params(self._ublk_id)
        grows = params.size_bytes < self._size_bytes and bool(self._control.features() & Feature.UPDATE_SIZE)
        if params.block_size != self._block_size or (params.size_bytes != self._size_bytes and not grows):
            raise Refused(f"/dev/ublkb{self._ublk_id}: is another disk of {params.size_bytes} bytes: not touched")
        self._depth, self._max_io, self._flags = info.depth, info.max_io_bytes, info.flags
        trace.point("queue.recovering")
        try:
            self._control.start_user_recovery(self._ublk_id)
        except OSError as error:
            if error.errno == errno.EBUSY:
                return self._again(self._take_device, "the kernel to notice the death of the last owner")
            if error.errno != errno.EINVAL:  # EINVAL: a predecessor died after this command and before its FETCHes
                raise
        self._attach(self._control_thread("END_USER_RECOVERY", lambda c: self._end_recovery(c, grows)))

    def _end_recovery(self, control: Control, grows: bool) -> None:
        """Then the size: only a started disk has one that can change. A death before it, and the successor does it."""
        control.end_user_recovery(self._ublk_id, os.getpid())
        if grows:
            trace.point("queue.growing")
            control.update_size(self._ublk_id, self._size_bytes)
            self._role.log.info(f"/dev/ublkb{self._ublk_id} has grown to {self._size_bytes} bytes")

    def _attach(self, finish: Callable[[], None]) -> None:
        try:
            device = QueueDevice(self._ublk_id, self._depth)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EBUSY):
                raise
            return self._again(lambda: self._attach(finish), f"/dev/ublkc{self._ublk_id}: {error.strerror}")
        role, slot = self._role, slot_bytes(self._max_io)
        self._slot_bytes = slot
        self._arena = Arena.create(role.runtime, role.name, role.generation, self._depth * slot)
        self._core = QueueCore(self._block_size, self._depth)
        self._taken = [None] * self._depth
        address = self._arena.address
        trace.point("queue.fetching")
        device.fetch_all(lambda tag: address + tag * slot)
        trace.point("queue.fetched")
        self._device = device
        role.loop.announce(device.eventfd, self._requests)
        self._usb = role.connect("usb", "data", self._hello, self._usb_arrived, self._completions)
        finish()

    def _control_thread(self, name: str, command: Callable[[Control], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                command(Control())
            except OSError as error:
                text = f"{name} of ublk device {self._ublk_id}: {error.strerror}"
                self._role.loop.post(lambda: _raise(Gone(text)))
            else:
                self._role.loop.post(self._started)

        def begin() -> None:
            self._waits_for = name
            threading.Thread(target=run, name=name, daemon=True).start()

        return begin

    def _again(self, step: Callable[[], None], waits_for: str) -> None:
        self._waits_for = waits_for
        self._role.loop.after(_RETRY_S, step)

    def _started(self) -> None:
        trace.point("queue.started")
        self._waits_for = "its queue limits to be set"
        self._settling = True
        self._role.log.info(
            f"/dev/ublkb{self._ublk_id} is up, depth {self._depth}, memory locked: {self._arena.locked}"
        )
        self._ask_settle_again()

    def _ask_settle_again(self) -> None:
        # Asked for at every start: the values survive recovery, but a predecessor may have died before they were set.
        if self._settling:
            self._role.tell_watchdog({"note": "job", "function": "settle"})

    def _from_watchdog(self, note: dict[str, Any]) -> None:
        if note.get("note") == "job_done" and note.get("function") == "settle" and self._settling:
            self._settling = False
            if not note.get("ok"):
                raise Gone(f"queue limits of ublk device {self._ublk_id} could not be set: {note.get('reason')}")
            self._waits_for = ""
            self._role.ready()

    def _can_quiesce(self) -> bool:
        return self._device is not None and not self._waits_for and bool(self._flags & Feature.QUIESCE)

    # -- requests and completions --------------------------------------------------------------------------------
    def _requests(self) -> None:
        device = self._device
        assert device is not None
        # The block layer's other flags (META, FAILFAST, ...) say how urgent it is, not what to do.
        now = time.monotonic()
        for tag, op, start, sectors, flags in device.requests(reset=False):
            wire_op = _OPS.get(op)
            if wire_op is None:
                device.commit(tag, -errno.EOPNOTSUPP)
                continue
            taken = self._core.take(tag, wire_op, start, sectors, _wire_flags(wire_op, flags) if flags else 0)
            self._batch.append(taken.message())
            self._taken[tag] = now, wire_op
            if follow.on:
                self._follow(
                    taken.sequence, "taken", op=wire_op.name.lower(), lba=taken.lba, blocks=taken.blocks, tag=tag
                )
            trace.point("queue.request.taken")
        if device.stopped and not self._drain.begun:
            raise Gone(f"ublk device {self._ublk_id} was stopped by another program")

    def _completions(self, kind: Kind, body: Body) -> None:
        if kind is not Kind.COMPLETIONS:
            raise WireError(f"{kind} from usb is not for a queue")
        device = self._device
        assert device is not None
        trace.point("queue.completions.received")
        for sequence, status in parse_completions(body):
            commit = self._core.complete(sequence, status)
            if commit is not None:
                if follow.on:
                    self._follow(sequence, "committed", tag=commit.tag, result=commit.result)
                self._commit(device, commit)

    def _commit(self, device: QueueDevice, commit: Commit) -> None:
        trace.point("queue.committing")
        device.commit(commit.tag, commit.result)
        self._committed = True
        taken, self._taken[commit.tag] = self._taken[commit.tag], None
        if taken is not None:
            now = time.monotonic()
            self._stats.done(taken[1], max(commit.result, 0), now - taken[0], commit.result < 0, now)

    def _follow(self, sequence: int, what: str, **fields: int | str) -> None:
        number = follow.request_id(self._role.generation, sequence)
        follow.step(follow.io_id(self._export_id, number), what, **fields)

    def _hello(self) -> Body:
        return {
            "export_id": self._export_id,
            "block_size": self._block_size,
            "size_bytes": self._size_bytes,
            "depth": self._depth,
            "slot_bytes": self._slot_bytes,
        }

    def _usb_arrived(self, generation: int) -> None:
        self._batch = [taken.message() for taken in self._core.outstanding()]
        self._flush()

    def _flush(self) -> None:
        if self._device is None:
            return
        batch, self._batch = self._batch, []
        for start in range(0, len(batch), limits.MAX_BATCH):
            # False: usb is dead or not there yet. Its successor is told everything outstanding.
            self._usb.send(Kind.REQUESTS, batch[start : start + limits.MAX_BATCH])
        self._device.submit()
        if batch:
            trace.point("queue.requests.sent")
        if self._committed:
            self._committed = False
            trace.point("queue.committed")
        if self._drain.begun:
            self._drain.go_on(self._core.in_flight)

    def _status(self) -> dict[str, Any]:
        now = time.monotonic()
        oldest = min((taken[0] for taken in self._taken if taken is not None), default=now)
        return {
            **self._stats.status(now),
            "oldest_ms": round((now - oldest) * 1000),
            "device": f"/dev/ublkb{self._ublk_id}",
            "waits_for": self._waits_for,
            "in_flight": self._core.in_flight if self._device else 0,
            "completed": self._core.completed if self._device else 0,
        }


def _wire_flags(op: Op, flags: int) -> int:
    """The flags of a ublk request (IoFlag) that change what is to be done, as the wire has them."""
    if op is Op.WRITE and flags & IoFlag.FUA:
        return int(RequestFlag.FUA)
    return int(RequestFlag.NO_UNMAP) if op is Op.WRITE_ZEROES and flags & IoFlag.NOUNMAP else 0


def _raise(error: Exception) -> None:
    raise error


def start(role: Role) -> None:
    Queue(role)


def settle(runtime: Runtime, role: str, args: dict[str, Any]) -> None:
    """Set the queue limits (see settle_queue_limits), in a process that may block and does not hold the device."""
    settle_queue_limits(int(args["ublk_id"]), int(args["depth"]))


def scan(runtime: Runtime, role: str, args: dict[str, Any]) -> None:
    """Make the disk's partitions known, in a process that may wait for I/O (see gadget.ublk.partitions)."""
    faults = make_known(int(args["ublk_id"]))
    if faults:
        raise Refused("; ".join(faults))


def retire(runtime: Runtime, role: str, args: dict[str, Any]) -> None:
    """Remove the device of a queue that is wanted no more. Pending I/O fails with EIO; holders do not block it."""
    ublk_id, control = int(args["ublk_id"]), Control()
    try:
        info = control.find(ublk_id)
    except FileNotFoundError:
        return  # deleted already; it goes when its last holder lets go
    if info is None or info.mark != ownership_mark(runtime.instance, int(args["export_id"])):
        return
    try:
        control.stop(ublk_id)
        control.delete_async(ublk_id)
    except OSError as error:
        if error.errno != errno.ENODEV:  # gone meanwhile is what was wanted
            raise
