"""The gadget's usb role where it needs no kernel: queues that come, and queues that are dead already."""

from pathlib import Path
from types import SimpleNamespace

from bus.runtime import Runtime, Side
from common.log import Log
from gadget.usb.core import UsbCore
from gadget.usb.role import Usb

HELLO = {"export_id": 1, "block_size": 512, "size_bytes": 1 << 20, "depth": 16, "slot_bytes": 4096}


def test_a_late_hello_of_a_queue_that_is_dead_already_ends_nothing(tmp_path: Path) -> None:
    """Found by review: its arena was gone, and usb exited with it."""
    runtime = Runtime(Side.GADGET, "late", tmp_path)
    runtime.create()
    usb = Usb.__new__(Usb)
    usb._core = UsbCore()
    usb._role = SimpleNamespace(runtime=runtime, log=Log(tmp_path / "log", "usb"))  # type: ignore[assignment]
    usb._queue_arrived("queue.a", 1, HELLO)
    assert usb._core.counts() == {}
    assert "waiting for its successor" in (tmp_path / "log").read_text()
