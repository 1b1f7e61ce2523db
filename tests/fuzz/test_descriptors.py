"""What a plugged-in device says of itself, through libusb and through sysfs: a gadget, or one of the named errors."""

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import WireError
from host.session.finder import find
from host.usb import device as module
from host.usb.device import Pipe
from tests.fuzz.hurt import hurt

BYTE = st.integers(0, 255)
SMOO = st.just((0xFF, 0x53, 0x4D))
GOOD = [(0x81, 3), (0x02, 3), (0x83, 2), (0x04, 2)]
ENDPOINTS = st.permutations(GOOD) | st.lists(st.tuples(BYTE, BYTE), max_size=6)
INTERFACE = st.tuples(SMOO | st.tuples(BYTE, BYTE, BYTE), BYTE, ENDPOINTS)
CONFIGURATION = st.tuples(BYTE, st.lists(INTERFACE, max_size=4), st.integers(0, 2))


class Backend:
    """pyusb's. `more` interfaces are announced than there are, and `fails` calls until one fails."""

    def __init__(self, configurations: list[Any], active: int, fails: int, error: Exception) -> None:
        self.configurations, self.active, self.left, self.error = configurations, active, fails, error
        self.open = 0

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error

    def enumerate_devices(self) -> list[str]:
        self._count()
        return ["device"]

    def get_device_descriptor(self, found: str) -> Any:
        self._count()
        return SimpleNamespace(bus=1, address=2, bNumConfigurations=len(self.configurations))

    def open_device(self, found: str) -> str:
        self._count()
        self.open += 1
        return "handle"

    def get_configuration(self, handle: str) -> int:
        self._count()
        return self.active

    def close_device(self, handle: str) -> None:
        self.open -= 1

    def get_configuration_descriptor(self, found: str, index: int) -> Any:
        self._count()
        value, interfaces, more = self.configurations[index]
        return SimpleNamespace(bConfigurationValue=value, bNumInterfaces=len(interfaces) + more)

    def get_interface_descriptor(self, found: str, place: int, alternate: int, index: int) -> Any:
        self._count()
        interfaces = self.configurations[index][1]
        if place >= len(interfaces):
            raise IndexError(f"Invalid interface index {place}")  # as pyusb says it of one without settings
        (one, two, three), number, endpoints = interfaces[place]
        return SimpleNamespace(
            bInterfaceClass=one,
            bInterfaceSubClass=two,
            bInterfaceProtocol=three,
            bInterfaceNumber=number,
            bNumEndpoints=len(endpoints),
        )

    def get_endpoint_descriptor(self, found: str, number: int, place: int, alternate: int, index: int) -> Any:
        self._count()
        address, attributes = self.configurations[index][1][place][2][number]
        return SimpleNamespace(bEndpointAddress=address, bmAttributes=attributes)


@given(
    configurations=st.lists(CONFIGURATION, max_size=3),
    active=BYTE,
    fails=st.integers(0, 20),
    error=st.sampled_from([OSError(errno.EIO, "I/O"), OSError(errno.ENODEV, "gone"), IndexError("Invalid alternate")]),
)
@settings(deadline=None)
def test_any_descriptors_are_a_gadget_or_a_named_error_and_the_device_is_let_go(
    configurations: list[Any], active: int, fails: int, error: Exception
) -> None:
    backend = Backend(configurations, active, fails, error)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "fresh_backend", lambda: backend)
        try:
            place = module._describe(1, 2)
        except WireError as refused:
            assert "\n" not in str(refused)
        except OSError as failed:
            assert failed.errno
        else:
            assert set(place.endpoints) == set(Pipe)
            for pipe, address in place.endpoints.items():
                assert address & 0x80 == pipe.value[0]
    assert backend.open == 0


DEVICE = {"busnum": b"1\n", "devnum": b"7\n", "serial": b"board-7\n", "speed": b"480\n", "idVendor": b"1d6b\n"}
SETTING = {"bInterfaceClass": b"ff\n", "bInterfaceSubClass": b"53\n", "bInterfaceProtocol": b"4d\n"}


def plug(root: Path, change: Callable[[bytes], bytes] = lambda good: good) -> None:
    for name, files in (("1-1", DEVICE), ("1-1:1.0", SETTING)):
        (root / name).mkdir(exist_ok=True)
        for file, content in files.items():
            (root / name / file).write_bytes(change(content))


def test_the_good_device_is_found(tmp_path: Path) -> None:
    plug(tmp_path)
    assert [(g.bus, g.address, g.serial) for g in find("board-7", tmp_path)] == [(1, 7, "board-7")]


@given(data=st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_device_with_any_words_in_sysfs_is_found_or_passed_over(data: st.DataObject, tmp_path: Path) -> None:
    plug(tmp_path, lambda good: data.draw(st.just(good) | hurt(good)))
    for gadget in find(None, tmp_path):
        assert gadget.serial.isprintable() and gadget.speed.isprintable(), "it is shown in terminals"
