"""The host's usb role where it needs no device: what it refuses to hear."""

from types import SimpleNamespace

import pytest

from common.errors import WireError
from common.wire import ExportRecord, Op, Request
from common.wire_v1 import ControlV1, Record
from host.usb.core import Served, UsbCore
from host.usb.role import Usb
from host.usb.waits import Waits

DISK = Served(ExportRecord(0xA, 512, 1 << 20), "disk", False)


def attached_usb(version: int) -> Usb:
    """The role at the beginning of an epoch: a device is claimed, and nothing was said to it yet."""
    usb = Usb.__new__(Usb)
    usb._core, usb._batches, usb._arenas = UsbCore(), {DISK.role: []}, {}
    usb._counts = dict.fromkeys(("requests", "responses", "attachments", "epochs"), 0)
    usb._refusals = SimpleNamespace(count=lambda kind, why: None)  # type: ignore[assignment]
    usb._role = SimpleNamespace(log=SimpleNamespace(warning=lambda text: None))  # type: ignore[assignment]
    usb._session = SimpleNamespace(send=lambda *note: True)  # type: ignore[assignment]
    usb._attachment = SimpleNamespace(  # type: ignore[assignment]
        bus=1, address=2, version=version, epoch=version * 77, control=lambda request: None
    )
    usb._reason, usb._waits = "", Waits(lambda: 0.0)
    usb._core.offer([DISK])
    usb.attached()
    return usb


def asks(usb: Usb, version: int) -> None:
    """The gadget asks for one block."""
    if version:
        usb.request(Record(Op.READ, 0, 1, 0xA, 0, 1))
    else:
        usb.message(Request(Op.READ, 1, 0xA, 0, 1).encode())


def announce(usb: Usb, version: int) -> None:
    """The session has our exports announced."""
    request = int(ControlV1.CONFIG) if version else 2
    usb._control({"serial": 1, "type": 0x41, "request": request, "data": b"set", "epoch": version * 77})


@pytest.mark.parametrize("version", [0, 1])
def test_a_request_before_our_exports_were_announced_breaks_the_protocol(version: int) -> None:
    """Found by review: it is one of before this attachment, and was done."""
    usb = attached_usb(version)
    with pytest.raises(WireError, match="a Request before our exports were announced"):
        asks(usb, version)
    assert usb._core.counts()["disk"]["in_flight"] == 0
    announce(usb, version)
    asks(usb, version)
    assert usb._core.counts()["disk"]["in_flight"] == 1


def test_a_new_epoch_hears_nothing_before_it_was_announced_again() -> None:
    usb = attached_usb(1)
    announce(usb, 1)
    usb.restarting()
    usb.restarted()
    with pytest.raises(WireError, match="before our exports were announced"):
        asks(usb, 1)
