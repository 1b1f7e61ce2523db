"""Users of the two block devices: a few at a time, each with one request outstanding, reading what they may.

One write in five is FUA: when it has ended it must be on stable storage. A WRITE_ZEROES that a v0 host cannot be told
is EOPNOTSUPP, and is then written as zeroes, as the block layer does (blkdev_issue_zeroout).
"""

import errno
from collections.abc import Callable

from common.wire import Op
from gadget.ublk.abi import BlockOp, DeviceState, IoFlag
from tests.sim.checker import BLOCK, Checker, content
from tests.sim.model_source import Disk
from tests.sim.model_ublk import Bio, Driver
from tests.sim.world import World


class Workload:
    """`users` for each export; they go on until told to `stop`."""

    def __init__(
        self,
        world: World,
        driver: Driver,
        checker: Checker,
        disks: dict[int, Disk],
        users: int,
        zeroes_refused: bool,  # the host speaks v0
    ) -> None:
        self._zeroes_refused = zeroes_refused
        self._world, self._driver, self._checker = world, driver, checker
        self._disks = disks  # by export id
        self._exports = {n: len(disk.bytes) // BLOCK for n, disk in disks.items()}  # their blocks
        self._going = True
        self.outstanding = 0
        self.completed = 0
        self._stirred = 0  # `completed` when something went wrong last
        for export_id in disks:
            for _ in range(users):
                world.soon(lambda export_id=export_id: self._next(export_id), 0, 1e-3)  # type: ignore[misc]

    @property
    def done(self) -> bool:
        return not self._going and self.outstanding == 0

    def stop(self) -> None:
        """Begin nothing new."""
        self._going = False

    def stir(self) -> None:
        """Something goes wrong now: be busy for a while. Between far faults nothing is learned by being busy."""
        self._stirred = self.completed

    def device(self, export_id: int) -> int | None:
        for number, device in self._driver.devices.items():
            if device.mark & 0xFFFFFFFF == export_id and device.state is not DeviceState.DEAD:
                return number
        return None

    def _next(self, export_id: int) -> None:
        if not self._going:
            return
        number = self.device(export_id)
        if number is None:
            self._world.after(5e-3, lambda: self._next(export_id))
            return
        random = self._world.random
        blocks = random.choice((1, 1, 2, 4, 8))
        lba = random.randrange(self._exports[export_id] - blocks + 1)
        op = random.choices(
            (BlockOp.WRITE, BlockOp.READ, BlockOp.FLUSH, BlockOp.DISCARD, BlockOp.WRITE_ZEROES), (48, 40, 5, 4, 3)
        )[0]
        fua = op is BlockOp.WRITE and random.random() < 0.2
        self.request(number, export_id, op, lba, blocks, lambda: self._pause(export_id), fua)

    def _pause(self, export_id: int) -> None:
        most = 100e-3 if self._world.random.random() < 0.1 else 2e-3
        if self.completed > self._stirred + 60:
            most = 1.0
        self._world.soon(lambda: self._next(export_id), 1e-5, most)

    def request(
        self,
        number: int,
        export_id: int,
        op: BlockOp,
        lba: int,
        blocks: int,
        then: Callable[[], None],
        fua: bool = False,
    ) -> None:
        checker, world = self._checker, self._world
        began, data, written = world.now, b"", []
        if op in (BlockOp.WRITE, BlockOp.DISCARD, BlockOp.WRITE_ZEROES):
            version = checker.new_version() if op is BlockOp.WRITE else 0
            written = [checker.write_begins(export_id, n, version) for n in range(lba, lba + blocks)]
            if op is BlockOp.WRITE:
                data = b"".join(content(export_id, n, version) for n in range(lba, lba + blocks))
        self.outstanding += 1
        name = f"{op.name}{' FUA' if fua else ''} {export_id}:{lba}+{blocks}"
        world.say(f"user: {name}{f' version {version}' if written else ''}")

        asked = op

        def ended(result: int, got: bytes) -> None:
            nonlocal asked
            if op is BlockOp.WRITE_ZEROES and result == -errno.EOPNOTSUPP and self._zeroes_refused:
                world.counts["zeroes written instead"] += 1
                asked = BlockOp.WRITE
                self._driver.submit(number, Bio(asked, lba, blocks, bytes(blocks * BLOCK), ended))
                return
            self.outstanding -= 1
            self.completed += 1
            world.say(f"user: {name} ended with {result}")
            failed = result < 0
            if failed and not self._may_fail(export_id, asked, fua, lba, blocks, -result, began):
                world.violate(f"{name} failed with {-result}")
                return
            for item in written:
                item.ended, item.failed = world.now, failed
            if failed:
                world.counts[f"bio {op.name} failed as its disk did"] += 1
                return then()
            trouble = self._disks[export_id].trouble
            if trouble is not None and trouble.must_fail(Op[op.name], began):
                world.violate(f"{name} ended well after an fdatasync had failed")
            if fua:
                world.counts["bio FUA"] += 1
                for index, item in enumerate(written):
                    checker.fua_ended(export_id, lba + index, item, self._durable(export_id, lba + index))
            if op is BlockOp.FLUSH:
                for block in range(self._exports[export_id]):
                    what = "what a crash leaves after a FLUSH"
                    checker.read_ended(export_id, block, began, self._durable(export_id, block), what)
            if op is BlockOp.READ:
                for index in range(blocks):
                    piece = got[index * BLOCK : (index + 1) * BLOCK]
                    checker.read_ended(export_id, lba + index, began, piece)
            then()

        if op is BlockOp.FLUSH:
            lba, blocks = 0, 0
        self._driver.submit(number, Bio(op, lba, blocks, data, ended, int(IoFlag.FUA) if fua else 0))

    def _may_fail(
        self, export_id: int, op: BlockOp, fua: bool, lba: int, blocks: int, error: int, began: float
    ) -> bool:
        trouble = self._disks[export_id].trouble
        if trouble is None:
            return False
        return trouble.may_fail(Op[op.name], fua, lba * BLOCK, (lba + blocks) * BLOCK, error, began)

    def _durable(self, export_id: int, lba: int) -> bytes:
        """What a crash of the host would leave now."""
        return self._disks[export_id].durable[lba * BLOCK : (lba + 1) * BLOCK]

    def read_all(self) -> None:
        """The last look: every block, one after the other."""
        for export_id, blocks in self._exports.items():
            number = self.device(export_id)
            assert number is not None
            for lba in range(0, blocks, 4):
                self.request(number, export_id, BlockOp.READ, lba, 4, lambda: None)
