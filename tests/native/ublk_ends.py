"""ublk and the block layer in the model process, upon tests.sim.model_ublk: control calls, queues, and disks' users."""

import ctypes
import errno
import mmap
from ctypes import addressof, c_char
from dataclasses import replace
from typing import Any, cast

from gadget.ublk.abi import BlockOp, DeviceState
from gadget.ublk.control import RECOVERABLE, DeviceParams
from tests.native.machine import Calls, Connection, Machine
from tests.native.usb_ends import Owner
from tests.sim.model_ublk import Bio, Device, QueueDevice, Tag

SECTOR = 512


class QueueEnd:
    """An open /dev/ublkcN. The slots of its server are mirrored here, where the model copies from and to."""

    def __init__(self, ends: "UblkEnds", connection: Connection, number: int, depth: int) -> None:
        self._ends, self._connection = ends, connection
        device = ends.driver.devices.get(number)
        if device is None:
            raise OSError(errno.ENOENT, "no such device")
        if device.owner is not None or not device.noticed:
            raise OSError(errno.EBUSY, "open already")
        self._device, self._depth = device, depth
        self.process = Owner(ends.machine.world)
        device.owner = cast(QueueDevice, self)
        self._slots = mmap.mmap(-1, depth * device.max_io_bytes)
        connection.answer()

    def heard(self, message: list[Any]) -> None:
        if message[0] == "fetch":
            base = addressof(c_char.from_buffer(self._slots))
            self._device.tags = {n: Tag(base + n * self._device.max_io_bytes) for n in range(self._depth)}
            return self._connection.answer()
        for number, result, data in message[1]:
            ctypes.memmove(self._device.tags[number].address, data, len(data))
            self._ends.driver.commit(self._device, number, result)

    def arrive(self, number: int, bio: Bio) -> None:
        """The driver gives a request to its server."""
        if self.process.alive:
            data = bio.data if bio.op is BlockOp.WRITE else b""
            self._connection.push([number, int(bio.op), bio.sector, bio.sectors, data], len(data))

    def closed(self) -> None:
        self.process.alive = False
        self._ends.driver.owner_died(self._device, cast(QueueDevice, self))


class DiskEnd:
    """An open /dev/ublkbN: one request at a time, answered when the block layer has ended it."""

    def __init__(self, ends: "UblkEnds", connection: Connection, number: int) -> None:
        if ends.driver.devices.get(number) is None:
            raise OSError(errno.ENOENT, "no such disk")
        self._ends, self._connection, self._number = ends, connection, number
        connection.answer()

    def heard(self, message: list[Any]) -> None:
        op, sector, sectors, data = message
        self._ends.driver.submit(self._number, Bio(BlockOp(op), sector, sectors, data, self._ended))

    def _ended(self, result: int, data: bytes) -> None:
        if result < 0:
            self._connection.fail(-result)
        else:
            self._connection.answer([result, data])

    def closed(self) -> None:
        return None


class UblkEnds:
    """Control commands, as gadget.ublk.control.Control has them."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.driver = machine, machine.driver

    def _device(self, number: int) -> Device:
        device = self.driver.devices.get(number)
        if device is None:
            raise OSError(errno.ENODEV, f"ublk device {number}")
        return device

    def find(self, connection: Connection, number: int) -> list[int] | None:
        device = self.driver.devices.get(number)
        if device is None:
            return None
        return [number, device.depth, device.max_io_bytes, int(device.state), -1, int(RECOVERABLE), device.mark]

    def numbers(self, connection: Connection) -> list[int]:
        return list(self.driver.devices)

    def add(self, connection: Connection, number: int, depth: int, max_io_bytes: int, mark: int) -> None:
        if number in self.driver.devices:
            raise FileExistsError(errno.EEXIST, "exists")
        self.driver.devices[number] = Device(number, depth, max_io_bytes, mark)

    def set_params(self, connection: Connection, number: int, fields: list[Any]) -> None:
        self._device(number).params = DeviceParams(*fields)

    def get_params(self, connection: Connection, number: int) -> list[Any]:
        params = self._device(number).params or DeviceParams(0, 512, 4096)
        return [params.size_bytes, params.block_size, params.max_io_bytes]

    def update_size(self, connection: Connection, number: int, size_bytes: int) -> None:
        device = self._device(number)
        if device.params is None or device.state is DeviceState.DEAD:
            raise OSError(errno.ENODEV, "no disk whose size could change")
        device.params = replace(device.params, size_bytes=size_bytes)

    def stop(self, connection: Connection, number: int) -> None:
        device = self._device(number)
        back = [tag.bio for tag in device.tags.values() if tag.bio is not None] + list(device.waiting)
        device.waiting.clear()
        for tag in device.tags.values():
            tag.bio = None
        device.state = DeviceState.DEAD
        for bio in back:
            bio.done = True
            bio.ended(-errno.EIO, b"")

    def delete_async(self, connection: Connection, number: int) -> None:
        device = self._device(number)
        self.stop(connection, number)
        del self.driver.devices[device.number]

    def start(self, connection: Connection, number: int) -> object:
        device = self._device(number)

        def then() -> None:
            device.state = DeviceState.LIVE
            self.driver.issue(device)
            connection.answer()

        self.machine.block(connection, lambda: self._fetched(device), then)
        return Calls.LATER

    def start_user_recovery(self, connection: Connection, number: int) -> None:
        device = self._device(number)
        if device.owner is not None or not device.noticed:
            raise OSError(errno.EBUSY, "the owner is not gone yet")
        if device.state is not DeviceState.QUIESCED or device.recovering:
            raise OSError(errno.EINVAL, "said already, or no need")
        device.recovering = True

    def end_user_recovery(self, connection: Connection, number: int) -> object:
        device = self._device(number)

        def then() -> None:
            if device.state is not DeviceState.QUIESCED:
                raise OSError(errno.EBUSY, "not quiesced")
            device.state, device.recovering = DeviceState.LIVE, False
            self.driver.world.counts["ublk recovered"] += 1
            self.driver.issue(device)
            connection.answer()

        self.machine.block(connection, lambda: self._fetched(device), then)
        return Calls.LATER

    def _fetched(self, device: Device) -> bool:
        return device.owner is not None and len(device.tags) == device.depth


def install(machine: Machine) -> None:
    ends = UblkEnds(machine)
    machine.openers |= {
        "queue": lambda connection, opening: QueueEnd(ends, connection, *opening),
        "disk": lambda connection, opening: DiskEnd(ends, connection, opening[0]),
    }
    for name in (
        *("find", "numbers", "add", "set_params", "get_params", "update_size", "stop", "delete_async"),
        *("start", "start_user_recovery", "end_user_recovery"),
    ):
        machine.calls[f"ublk_{name}"] = getattr(ends, name)
