"""One USB device opened as a smoo gadget: found and described by pyusb, claimed and driven through usbfs.

Making one blocks for as long as the kernel takes, and so does `set_interface`: the attachment does both in a thread.
Every failure is OSError with its errno, or WireError if the device is not shaped as smoo's.
"""

import contextlib
import ctypes
import errno
from dataclasses import dataclass
from enum import Enum
from typing import Any

from common import limits
from common.errors import WireError
from common.wire import CONTROL_TYPE, IDENT_BYTES, Control, Ident, Identity
from common.wire_v1 import CONTROL_TYPE_V1, HELLO_BYTES, ControlV1, Hello
from host.usb.library import fresh_backend
from host.usb.usbfs import UrbKind, UsbFs

_IN = 0x80
_BULK, _INTERRUPT = 2, 3  # bmAttributes & 3


class Pipe(Enum):
    """The four endpoints: (direction bit, transfer type)."""

    REQUESTS = (_IN, _INTERRUPT)
    RESPONSES = (0, _INTERRUPT)
    PAYLOADS_IN = (_IN, _BULK)
    PAYLOADS_OUT = (0, _BULK)

    @property
    def urb_kind(self) -> UrbKind:
        return UrbKind.BULK if self.value[1] == _BULK else UrbKind.INTERRUPT


class Buffer:
    """Memory of our own. `view` is its bytes, `address` where they lie."""

    def __init__(self, size_bytes: int) -> None:
        self._bytes = (ctypes.c_char * size_bytes)()
        self.address, self.size_bytes = ctypes.addressof(self._bytes), size_bytes
        self.view = memoryview(self._bytes).cast("B")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an interface is in a device that looks like smoo's, and what it calls itself."""

    configuration: int
    active: bool
    interface: int
    endpoints: dict[Pipe, int]
    identity: Identity = Identity.SMOO


class Device:
    """A claimed smoo interface, at a clean boundary if its gadget speaks v1 (`version`)."""

    def __init__(self, bus: int, address: int, reset: bool) -> None:
        """Find, open, claim; ask which wire it speaks; SET_INTERFACE for v1, and a reset for v0 if asked.

        Raises OSError: ENODEV if it is not there (any more), EACCES without permission, EBUSY if somebody else has
        the interface; WireError if it has no smoo interface.
        """
        place = _describe(bus, address)
        self.endpoints, self.interface = place.endpoints, place.interface
        self.usbfs = UsbFs(bus, address)
        try:
            if not place.active:
                self.usbfs.set_configuration(place.configuration)
            self._claim()
            if place.identity is not Identity.SMOO:
                self._identify()
            self.version = self._ask_version()
            if self.version == 1:
                self.set_interface()
            elif reset:
                self.usbfs.release(self.interface)
                self.usbfs.reset()
                self.usbfs.claim(self.interface)
        except BaseException:
            self.usbfs.close()
            raise

    def _claim(self) -> None:
        """Before anything that the device would notice: it may be at work for another program."""
        try:
            self.usbfs.claim(self.interface)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise OSError(errno.EBUSY, "another program holds its interface") from None

    def _identify(self) -> None:
        """It bears a name that others bear too: only IDENT tells, and nothing else is asked of it before."""
        kind = CONTROL_TYPE[Control.IDENT]
        try:
            answer = self.usbfs.control(kind, Control.IDENT, self.interface, IDENT_BYTES, limits.CONTROL_TIMEOUT_MS)
        except OSError as error:
            if error.errno != errno.EPIPE:
                raise
            raise WireError("it poses as fastboot, and knows no IDENT: it is not a smoo gadget") from None
        Ident.decode(answer)

    def _ask_version(self) -> int:
        kind = CONTROL_TYPE_V1[ControlV1.HELLO]
        try:
            answer = self.usbfs.control(kind, ControlV1.HELLO, self.interface, HELLO_BYTES, limits.CONTROL_TIMEOUT_MS)
        except OSError as error:
            if error.errno != errno.EPIPE:
                raise
            return 0
        Hello.decode(answer)
        return 1

    def set_interface(self) -> None:
        """v1's clean boundary. Blocks for as long as the device does not answer, at most 5 s (the kernel's limit)."""
        self.usbfs.set_interface(self.interface, 0)

    def close(self) -> None:
        """All transfers end. Blocks until the controller has let go of them."""
        self.usbfs.close()


def _describe(bus: int, address: int) -> _Place:
    try:
        return _look(fresh_backend(), bus, address)
    except IndexError as error:  # pyusb's, of an interface that has no setting at all
        raise WireError(f"the device's descriptors are not whole: {error}") from None


def _look(backend: Any, bus: int, address: int) -> _Place:
    found, configurations = _find(backend, bus, address)
    handle = backend.open_device(found)
    try:
        active = backend.get_configuration(handle)
    finally:
        with contextlib.suppress(OSError):
            backend.close_device(handle)
    for index in range(configurations):
        configuration = backend.get_configuration_descriptor(found, index)
        value = int(configuration.bConfigurationValue)
        if active not in (0, value):
            continue
        for place in range(int(configuration.bNumInterfaces)):
            interface = backend.get_interface_descriptor(found, place, 0, index)
            kind = (interface.bInterfaceClass, interface.bInterfaceSubClass, interface.bInterfaceProtocol)
            if kind not in Identity._value2member_map_:
                continue
            identity, describe = Identity(kind), backend.get_endpoint_descriptor
            descriptors = [describe(found, n, place, 0, index) for n in range(interface.bNumEndpoints)]
            try:
                endpoints = _endpoints(descriptors)
            except WireError:
                if identity is Identity.SMOO:
                    raise
                continue  # a real fastboot, say, beside our interface or without it
            return _Place(value, active == value, int(interface.bInterfaceNumber), endpoints, identity)
    raise WireError("the device has no interface FF/53/4D, nor one that poses as fastboot: it is not a smoo gadget")


def _find(backend: Any, bus: int, address: int) -> tuple[Any, int]:
    for device in backend.enumerate_devices():
        descriptor = backend.get_device_descriptor(device)
        if (descriptor.bus, descriptor.address) == (bus, address):
            return device, int(descriptor.bNumConfigurations)
    raise OSError(errno.ENODEV, f"no USB device {bus}-{address}: it has gone")


def _endpoints(descriptors: list[Any]) -> dict[Pipe, int]:
    """By type and direction: FunctionFS numbers them as it likes."""
    endpoints: dict[Pipe, int] = {}
    for endpoint in descriptors:
        shape = (endpoint.bEndpointAddress & _IN, endpoint.bmAttributes & 3)
        pipe = next((pipe for pipe in Pipe if pipe.value == shape), None)
        if pipe is None or pipe in endpoints:
            raise WireError(f"the smoo interface has an endpoint too many: {endpoint.bEndpointAddress:#x}")
        endpoints[pipe] = int(endpoint.bEndpointAddress)
    missing = [pipe.name for pipe in Pipe if pipe not in endpoints]
    if missing:
        raise WireError(f"the smoo interface lacks endpoints: {', '.join(missing)}")
    return endpoints
