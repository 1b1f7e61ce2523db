"""The ublk driver and the block layer above it.

Copies drivers/block/ublk_drv.c of 6.12 with USER_RECOVERY and REISSUE. Witnesses in tests/e2e/test_ublk_binding.py:
a dead server's requests are issued again under other tags (test_kill_with_an_idle_tag_left_...), START_USER_RECOVERY
says EBUSY until the kernel has noticed the death (test_start_user_recovery_is_told_ebusy_while_the_owner_lives) and
EINVAL when a predecessor had said it already (test_killed_during_recovery_the_next_one_recovers), a device whose server
died before START_DEV is DEAD (test_killed_before_the_disk_exists_it_is_dead_and_made_again), depth - 1 requests are in
flight at most (test_kill_under_full_load_...). A write's bytes are copied into the slot before the server sees the
request; a read's bytes are copied out at the commit. Partitions, udev and timeouts are not modelled yet.
"""

import ctypes
import errno
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from gadget.ublk.abi import BlockOp, DeviceState, Feature
from gadget.ublk.control import RECOVERABLE, DeviceInfo, DeviceParams
from tests.sim import processes
from tests.sim.world import Waitable, World

if TYPE_CHECKING:
    pass


@dataclass(eq=False)
class Bio:
    """One request of the block layer. `ended(result, data)` is called once."""

    op: BlockOp
    sector: int
    sectors: int
    data: bytes
    ended: Callable[[int, bytes], None]
    flags: int = 0  # IoFlag
    done: bool = False
    issued: int = 0


@dataclass(eq=False)
class Tag:
    """A tag the server has fetched. `bio`: what is in flight under it."""

    address: int
    bio: Bio | None = None


@dataclass(eq=False)
class Device:
    number: int
    depth: int
    max_io_bytes: int
    mark: int
    state: DeviceState = DeviceState.DEAD
    params: DeviceParams | None = None
    owner: "QueueDevice | None" = None
    noticed: bool = True  # has the kernel let go of the dead owner
    recovering: bool = False
    waiting: deque[Bio] = field(default_factory=deque)
    tags: dict[int, Tag] = field(default_factory=dict)


class Driver:
    """All ublk devices of the gadget's machine, and the block layer's queue before each."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.devices: dict[int, Device] = {}
        self.waiting_for_device: dict[int, deque[Bio]] = {}

    # -- users of /dev/ublkbN --------------------------------------------------------------------------------------
    def submit(self, number: int, bio: Bio) -> None:
        device = self.devices[number]
        device.waiting.append(bio)
        self.issue(device)

    def issue(self, device: Device) -> None:
        """Give what waits to free tags: one tag always stays idle."""
        owner = device.owner
        if device.state is not DeviceState.LIVE or owner is None or not owner.process.alive:
            return
        free = [n for n, tag in device.tags.items() if tag.bio is None]
        self.world.random.shuffle(free)
        while device.waiting and len(free) > 1:
            number, bio = free.pop(), device.waiting.popleft()
            tag = device.tags[number]
            tag.bio = bio
            bio.issued += 1
            if bio.issued > 1:
                self.world.counts["ublk reissued"] += 1
            if bio.op is BlockOp.WRITE:
                ctypes.memmove(tag.address, bio.data, len(bio.data))
            self.world.soon(lambda owner=owner, number=number, bio=bio: owner.arrive(number, bio))  # type: ignore[misc]

    def commit(self, device: Device, number: int, result: int) -> None:
        tag = device.tags[number]
        bio = tag.bio
        if bio is None:
            self.world.violate(f"ublk {device.number}: COMMIT of idle tag {number}: a double completion")
            return
        tag.bio = None
        data = ctypes.string_at(tag.address, bio.sectors * 512) if bio.op is BlockOp.READ and result > 0 else b""
        moves = bio.op in (BlockOp.READ, BlockOp.WRITE)
        if result >= 0 and moves and result != bio.sectors * 512:
            self.world.violate(f"ublk {device.number}: {bio.op.name} of {bio.sectors * 512} bytes ended with {result}")
        self.end(bio, result, data)
        self.world.soon(lambda: self.issue(device))

    def end(self, bio: Bio, result: int, data: bytes = b"") -> None:
        if bio.done:
            self.world.violate("a block request was completed twice")
        bio.done = True
        self.world.counts[f"bio {bio.op.name}"] += 1
        self.world.soon(lambda: bio.ended(result, data), 1e-6, 20e-6)

    # -- death of the server ---------------------------------------------------------------------------------------
    def owner_died(self, device: Device, owner: "QueueDevice") -> None:
        if device.owner is not owner:
            return
        device.noticed = False
        self.world.soon(lambda: self._notice(device, owner), 0.5e-3, 12e-3)

    def _notice(self, device: Device, owner: "QueueDevice") -> None:
        device.noticed, device.owner = True, None
        back = [tag.bio for tag in device.tags.values() if tag.bio is not None]
        self.world.random.shuffle(back)
        device.waiting.extendleft(back)
        if device.tags:
            device.recovering = False  # it had fetched: START_USER_RECOVERY is due again
        device.tags.clear()
        if device.state is DeviceState.LIVE:
            device.state = DeviceState.QUIESCED

    def in_flight(self) -> int:
        return sum(sum(t.bio is not None for t in d.tags.values()) + len(d.waiting) for d in self.devices.values())


class Control:
    """gadget.ublk.control.Control of one process."""

    driver: Driver  # set by the run

    def __init__(self, timeout_s: float | None = None) -> None:
        from tests.sim.run import here

        process = here().current
        assert process is not None
        self._process, self._driver = process, here_driver()

    def __enter__(self) -> "Control":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def close(self) -> None:
        return None

    def find(self, number: int) -> DeviceInfo | None:
        device = self._driver.devices.get(number)
        if device is None:
            return None
        return DeviceInfo(number, device.depth, device.max_io_bytes, device.state, -1, int(RECOVERABLE), device.mark)

    def features(self) -> Feature:
        """Not QUIESCE: a drain is a death like others here."""
        return Feature.UPDATE_SIZE

    def update_size(self, number: int, size_bytes: int) -> None:
        self._process.effect("ublk UPDATE_SIZE")
        device = self._driver.devices[number]
        assert device.params is not None and device.state is not DeviceState.DEAD
        device.params = replace(device.params, size_bytes=size_bytes)

    def add(self, number: int, depth: int, max_io_bytes: int, mark: int, flags: int) -> None:
        self._process.effect("ublk ADD")
        if number in self._driver.devices:
            raise FileExistsError(errno.EEXIST, "exists")
        self._driver.devices[number] = Device(number, depth, max_io_bytes, mark)

    def set_params(self, number: int, params: DeviceParams) -> None:
        self._process.effect("ublk SET_PARAMS")
        self._driver.devices[number].params = params

    def get_params(self, number: int) -> DeviceParams:
        params = self._driver.devices[number].params
        return params if params is not None else DeviceParams(0, 512, 4096)

    def stop(self, number: int) -> None:
        """Pending I/O ends with EIO (tests/e2e/test_main_path.py, `down --force`)."""
        self._process.effect("ublk STOP")
        device = self._driver.devices[number]
        device.state = DeviceState.DEAD
        while device.waiting:
            self._driver.end(device.waiting.popleft(), -errno.EIO)

    def delete_async(self, number: int) -> None:
        self._process.effect("ublk DEL")
        device = self._driver.devices.pop(number, None)
        if device is not None and device.waiting:
            self._driver.world.violate(f"ublk {number} is deleted with I/O outstanding")

    def start(self, number: int, pid: int) -> None:
        device = self._driver.devices[number]
        processes.block(lambda: device.owner is not None and len(device.tags) == device.depth)
        self._process.effect("ublk START")
        device.state = DeviceState.LIVE
        self._driver.issue(device)

    def start_user_recovery(self, number: int) -> None:
        self._process.effect("ublk START_USER_RECOVERY")
        device = self._driver.devices[number]
        if device.owner is not None or not device.noticed:
            raise OSError(errno.EBUSY, "the owner is not gone yet")
        if device.state is not DeviceState.QUIESCED or device.recovering:
            raise OSError(errno.EINVAL, "said already, or no need")
        device.recovering = True

    def end_user_recovery(self, number: int, pid: int) -> None:
        device = self._driver.devices[number]
        processes.block(lambda: device.owner is not None and len(device.tags) == device.depth)
        self._process.effect("ublk END_USER_RECOVERY")
        if device.state is not DeviceState.QUIESCED:
            raise OSError(errno.EBUSY, "not quiesced")
        device.state, device.recovering = DeviceState.LIVE, False
        self._driver.world.counts["ublk recovered"] += 1
        self._driver.issue(device)


class QueueDevice:
    """gadget.ublk.device.QueueDevice."""

    stopped = False

    def __init__(self, number: int, depth: int) -> None:
        from tests.sim.run import here

        process = here().current
        assert process is not None
        self.process, self._driver = process, here_driver()
        device = self._driver.devices.get(number)
        if device is None:
            raise OSError(errno.ENOENT, "no such device")
        if device.owner is not None or not device.noticed:
            raise OSError(errno.EBUSY, "open already")
        self._device, self.depth = device, depth
        device.owner = self
        self._arrived: deque[tuple[int, Bio]] = deque()
        self._commits: list[tuple[int, int]] = []
        self._waitable = Waitable(process.world, lambda: bool(self._arrived))
        self.eventfd = self._waitable.number
        process.on_death.append(lambda: self._driver.owner_died(device, self))

    def fetch_all(self, address_of: Callable[[int], int]) -> None:
        self.process.effect("ublk FETCH")
        self._device.tags = {tag: Tag(address_of(tag)) for tag in range(self.depth)}

    def arrive(self, number: int, bio: Bio) -> None:
        if self.process.alive:
            self._arrived.append((number, bio))
            self._waitable.poke()

    def requests(self, reset: bool = True) -> Iterator[tuple[int, int, int, int, int]]:
        while self._arrived:
            number, bio = self._arrived.popleft()
            yield number, int(bio.op), bio.sector, bio.sectors, bio.flags

    def commit(self, tag: int, result: int) -> None:
        self._commits.append((tag, result))

    def submit(self) -> None:
        if not self._commits:
            return
        self.process.effect("ublk COMMIT")
        commits, self._commits = self._commits, []
        for tag, result in commits:
            self._driver.commit(self._device, tag, result)


def here_driver() -> Driver:
    return Control.driver
