"""What a device must look like to be taken for a gadget: its descriptors come from whoever was plugged in."""

import errno
import os
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from common.errors import WireError
from common.wire import Control, Ident, Identity
from common.wire_v1 import ControlV1
from host.usb import device as module
from host.usb.device import Pipe

BULK, INTERRUPT, ISOCHRONOUS = 2, 3, 1
GOOD = ((0x81, INTERRUPT), (0x02, INTERRUPT), (0x83, BULK), (0x04, BULK))
SMOO = (0xFF, 0x53, 0x4D)


class Backend:
    """pyusb's, of one device with one interface."""

    def __init__(self, endpoints: Sequence[tuple[int, int]], kind: tuple[int, int, int] = SMOO) -> None:
        self.endpoints, self.kind = endpoints, kind
        self.closed = 0

    def enumerate_devices(self) -> list[str]:
        return ["device"]

    def get_device_descriptor(self, found: str) -> Any:
        return SimpleNamespace(bus=1, address=2, bNumConfigurations=1)

    def open_device(self, found: str) -> str:
        return "handle"

    def get_configuration(self, handle: str) -> int:
        return 1

    def close_device(self, handle: str) -> None:
        self.closed += 1

    def get_configuration_descriptor(self, found: str, index: int) -> Any:
        return SimpleNamespace(bConfigurationValue=1, bNumInterfaces=1)

    def get_interface_descriptor(self, found: str, place: int, alternate: int, index: int) -> Any:
        one, two, three = self.kind
        return SimpleNamespace(
            bInterfaceClass=one,
            bInterfaceSubClass=two,
            bInterfaceProtocol=three,
            bInterfaceNumber=0,
            bNumEndpoints=len(self.endpoints),
        )

    def get_endpoint_descriptor(self, found: str, number: int, place: int, alternate: int, index: int) -> Any:
        address, attributes = self.endpoints[number]
        return SimpleNamespace(bEndpointAddress=address, bmAttributes=attributes)


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Backend]:
    def plug(endpoints: Sequence[tuple[int, int]], kind: tuple[int, int, int] = SMOO) -> Backend:
        backend = Backend(endpoints, kind)
        monkeypatch.setattr(module, "fresh_backend", lambda: backend)
        return backend

    return plug


@pytest.mark.parametrize("order", [GOOD, GOOD[::-1], (GOOD[2], GOOD[0], GOOD[3], GOOD[1])], ids=["", "back", "mixed"])
def test_endpoints_are_found_by_type_and_direction_in_any_order(plugged: Any, order: Any) -> None:
    backend = plugged(order)
    place = module._describe(1, 2)
    assert place.endpoints == {
        Pipe.REQUESTS: 0x81,
        Pipe.RESPONSES: 0x02,
        Pipe.PAYLOADS_IN: 0x83,
        Pipe.PAYLOADS_OUT: 0x04,
    }
    assert place.active and backend.closed == 1


@pytest.mark.parametrize(
    ("endpoints", "why"),
    [
        (GOOD[:3], "lacks endpoints: PAYLOADS_OUT"),
        ((), "lacks endpoints: REQUESTS, RESPONSES, PAYLOADS_IN, PAYLOADS_OUT"),
        ((*GOOD, (0x85, BULK)), "an endpoint too many: 0x85"),
        ((*GOOD[:3], (0x04, ISOCHRONOUS)), "an endpoint too many: 0x4"),
    ],
)
def test_another_set_of_endpoints_is_no_gadget_and_the_device_is_let_go(plugged: Any, endpoints: Any, why: str) -> None:
    backend = plugged(endpoints)
    with pytest.raises(WireError, match=why):
        module._describe(1, 2)
    assert backend.closed == 1


def test_another_class_is_no_gadget(plugged: Any) -> None:
    plugged(GOOD, (0x08, 0x06, 0x50))
    with pytest.raises(WireError, match="no interface FF/53/4D"):
        module._describe(1, 2)


# -- an interface that poses as fastboot -----------------------------------------------------------------------------
FASTBOOT = (0xFF, 0x42, 0x03)


def test_a_fastboot_with_our_four_endpoints_may_be_a_gadget(plugged: Any) -> None:
    plugged(GOOD, FASTBOOT)
    place = module._describe(1, 2)
    assert (place.identity, place.endpoints[Pipe.PAYLOADS_OUT]) == (Identity.FASTBOOT, 0x04)


@pytest.mark.parametrize("endpoints", [GOOD[2:], GOOD[:3], (*GOOD, (0x85, BULK)), ()])
def test_a_fastboot_with_other_endpoints_is_somebody_elses(plugged: Any, endpoints: Any) -> None:
    backend = plugged(endpoints, FASTBOOT)
    with pytest.raises(WireError, match="nor one that poses as fastboot"):
        module._describe(1, 2)
    assert backend.closed == 1


class Claimed:
    """Usbfs of a device that answers IDENT in its way, and writes down what it is asked."""

    def __init__(self, ident: bytes | int) -> None:
        self.ident, self.asked, self.closed = ident, list[int](), False

    def control(self, kind: int, request: int, interface: int, data: int, timeout_ms: int) -> bytes:
        self.asked.append(request)
        if request != Control.IDENT:
            raise OSError(errno.EPIPE, "stalled")
        if isinstance(self.ident, int):
            raise OSError(self.ident, os.strerror(self.ident))
        return self.ident

    def claim(self, interface: int) -> None: ...

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(("ident", "why"), [(errno.EPIPE, "knows no IDENT"), (b"FASTBOOT", "not a smoo gadget")])
def test_a_fastboot_that_is_none_of_ours_is_asked_for_ident_and_nothing_else_then_let_go(
    plugged: Any, monkeypatch: pytest.MonkeyPatch, ident: bytes | int, why: str
) -> None:
    plugged(GOOD, FASTBOOT)
    device = Claimed(ident)
    monkeypatch.setattr(module, "UsbFs", lambda bus, address: device)
    with pytest.raises(WireError, match=why):
        module.Device(1, 2, reset=True)
    assert device.asked == [Control.IDENT] and device.closed


def test_a_gadget_that_poses_as_fastboot_is_told_by_ident_and_then_like_any_other(
    plugged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugged(GOOD, FASTBOOT)
    device = Claimed(Ident().encode())
    monkeypatch.setattr(module, "UsbFs", lambda bus, address: device)
    assert module.Device(1, 2, reset=False).version == 0
    assert device.asked == [Control.IDENT, ControlV1.HELLO]
