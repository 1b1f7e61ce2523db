"""A user of /dev/ublkbN of the model, and the hand on its cable: what tests/chaos has for a real kernel."""

import time
from pathlib import Path

from gadget.ublk.abi import BlockOp
from tests.chaos.events import OUT_S, Cut, Sleep
from tests.native.wire import Line, call

_SECTOR = 512


class ModelDisk:
    """tests.chaos.workload.Disk. Through is a write and a flush, as the block layer does it without FUA."""

    def __init__(self, device: Path) -> None:
        self._line = Line("disk", int(device.name.removeprefix("ublkb")))

    def _do(self, op: BlockOp, offset: int, size: int, data: bytes = b"") -> tuple[int, bytes]:
        result, got = self._line.call(int(op), offset // _SECTOR, size // _SECTOR, data)
        return result, got

    def read(self, into: memoryview, offset: int) -> int:
        result, data = self._do(BlockOp.READ, offset, len(into))
        into[: len(data)] = data
        return result

    def write(self, data: memoryview, offset: int, through: bool) -> int:
        result, _ = self._do(BlockOp.WRITE, offset, len(data), bytes(data))
        if through:
            self.sync()
        return result

    def sync(self) -> None:
        self._do(BlockOp.FLUSH, 0, 0)

    def close(self) -> None:
        self._line.close()


class ModelCable:
    """tests.chaos.events.Cable. DEAUTHORIZE is the cable itself, out and in: a new address, where sysfs keeps it."""

    sleeps: tuple[Sleep, ...] = ()

    def sleep(self, sleep: Sleep) -> None:
        """Never: /sys/power of a native run is that of the machine somebody works at."""
        raise RuntimeError(f"the models have no {sleep.value} that could sleep")

    def cut(self, cut: Cut) -> None:
        if cut is Cut.RESET:
            call("reset")
        elif cut is Cut.UNBIND:
            call("unbind")
            time.sleep(OUT_S)  # the fault itself
            call("bind")
        else:
            call("plug", False)
            time.sleep(OUT_S)  # the fault itself
            call("plug", True)
