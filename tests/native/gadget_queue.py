"""Entry of the gadget's queues with the ublk driver by the model process, under their own names."""

import ctypes
import threading
from collections.abc import Callable, Iterator
from dataclasses import astuple
from typing import Any

from bus.role import Role
from bus.runtime import Runtime
from gadget.session import kernel
from gadget.ublk import role
from gadget.ublk.abi import BlockOp, DeviceState, Feature
from gadget.ublk.control import DeviceInfo, DeviceParams
from tests.native import wire
from tests.native.wire import Line


class Control:
    """gadget.ublk.control.Control: a connection of its own, so that one that waits holds no other up."""

    def __init__(self, timeout_s: float | None = None) -> None:
        self._line = Line("call")

    def __enter__(self) -> "Control":
        return self

    def __exit__(self, *_: object) -> None:
        self._line.close()

    def find(self, number: int) -> DeviceInfo | None:
        fields = self._line.call("ublk_find", number)
        if fields is None:
            return None
        fields[3] = DeviceState(fields[3])
        return DeviceInfo(*fields)

    def features(self) -> Feature:
        return Feature.UPDATE_SIZE

    def update_size(self, number: int, size_bytes: int) -> None:
        self._line.call("ublk_update_size", number, size_bytes)

    def add(self, number: int, depth: int, max_io_bytes: int, mark: int, flags: int) -> None:
        self._line.call("ublk_add", number, depth, max_io_bytes, mark)

    def set_params(self, number: int, params: DeviceParams) -> None:
        self._line.call("ublk_set_params", number, astuple(params))

    def get_params(self, number: int) -> DeviceParams:
        return DeviceParams(*self._line.call("ublk_get_params", number))

    def stop(self, number: int) -> None:
        self._line.call("ublk_stop", number)

    def delete_async(self, number: int) -> None:
        self._line.call("ublk_delete_async", number)

    def start(self, number: int, pid: int) -> None:
        self._line.call("ublk_start", number)

    def start_user_recovery(self, number: int) -> None:
        self._line.call("ublk_start_user_recovery", number)

    def end_user_recovery(self, number: int, pid: int) -> None:
        self._line.call("ublk_end_user_recovery", number)


class QueueDevice:
    """gadget.ublk.device.QueueDevice. A write's bytes are in their slot before `requests` tells of it."""

    stopped = False

    def __init__(self, number: int, depth: int) -> None:
        self._line, self.depth = Line("queue", number, depth), depth
        self.eventfd = self._line.fd
        self._reads: dict[int, int] = {}  # bytes asked for, by tag
        self._commits: list[tuple[int, int, bytes]] = []
        self._thread = threading.get_ident()

    def fetch_all(self, address_of: Callable[[int], int]) -> None:
        self._address_of = address_of
        self._line.call("fetch")

    def requests(self, reset: bool = True) -> Iterator[tuple[int, int, int, int, int]]:
        for tag, op, sector, sectors, data in self._line.pushed():
            if data:
                ctypes.memmove(self._address_of(tag), data, len(data))
            if op == BlockOp.READ:
                self._reads[tag] = sectors * 512
            yield tag, op, sector, sectors, 0

    def commit(self, tag: int, result: int) -> None:
        assert threading.get_ident() == self._thread, "ublk: one thread for each queue"
        size = self._reads.pop(tag, 0)
        data = ctypes.string_at(self._address_of(tag), size) if size and result > 0 else b""
        self._commits.append((tag, result, data))

    def submit(self) -> None:
        for commit in self._commits:
            self._line.send("commit", [commit])
        self._commits.clear()


def ublk_ids() -> frozenset[int]:
    return frozenset(wire.call("ublk_numbers"))


for module, name, value in (
    (role, "Control", Control),
    (role, "QueueDevice", QueueDevice),
    (role, "settle_queue_limits", lambda number, depth: None),  # the model keeps one tag idle by itself
    (kernel, "Control", Control),
    (kernel, "ublk_ids", ublk_ids),
):
    setattr(module, name, value)


def start(living: Role) -> None:
    wire.at(living.runtime)
    role.start(living)


settle = role.settle


def scan(runtime: Runtime, name: str, args: dict[str, Any]) -> None:
    """The I/O of a look for partitions: it waits like any other. No disk of a test has one."""
    wire.at(runtime)
    Line("disk", int(args["ublk_id"])).call(int(BlockOp.READ), 0, 8, b"")


def retire(runtime: Runtime, name: str, args: dict[str, Any]) -> None:
    wire.at(runtime)
    role.retire(runtime, name, args)
