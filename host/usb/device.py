"""One USB device opened through pyusb's backend interface: its smoo interface, four endpoints, transfers, control.

Synchronous calls only; which thread makes them is host.usb.attachment's. The backend interface is used rather than
usb.core.Device because it takes any object that tells its address: transfers go straight into and out of an arena.
Every failure is OSError with its errno, or WireError if the device is not shaped as smoo's.
"""

import ctypes
import errno
from dataclasses import dataclass
from enum import Enum
from typing import Any

from common.errors import WireError
from common.wire import INTERFACE_CLASS, INTERFACE_PROTOCOL, INTERFACE_SUBCLASS
from host.usb.library import fresh_backend

_ENDLESS = 0  # libusb: no timeout. A read that times out throws away what had arrived
_IN = 0x80
_BULK, _INTERRUPT = 2, 3  # bmAttributes & 3


class Pipe(Enum):
    """The four endpoints: (direction bit, transfer type)."""

    REQUESTS = (_IN, _INTERRUPT)
    RESPONSES = (0, _INTERRUPT)
    PAYLOADS_IN = (_IN, _BULK)
    PAYLOADS_OUT = (0, _BULK)


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes at an address, in the shape of array.array that pyusb's backend reads. The owner keeps them alive."""

    address: int
    size_bytes: int
    itemsize: int = 1

    def buffer_info(self) -> tuple[int, int]:
        return self.address, self.size_bytes


class Buffer:
    """Memory of our own for messages and for payloads that are thrown away."""

    def __init__(self, size_bytes: int) -> None:
        self._bytes = (ctypes.c_char * size_bytes)()
        self.span = Span(ctypes.addressof(self._bytes), size_bytes)

    def fill(self, data: bytes) -> Span:
        """Put `data` in; returns the span of exactly it. ValueError if it does not fit."""
        if len(data) > self.span.size_bytes:
            raise ValueError(f"{len(data)} bytes do not fit into {self.span.size_bytes}")
        ctypes.memmove(self.span.address, data, len(data))
        return Span(self.span.address, len(data))

    def get(self, size_bytes: int) -> bytes:
        return ctypes.string_at(self.span.address, size_bytes)


class Device:
    """A claimed smoo interface. `close` only when no transfer of any thread is left."""

    def __init__(self, bus: int, address: int, reset: bool) -> None:
        """Open, reset if asked, configure if needed, claim. Blocks for as long as the kernel takes.

        Raises OSError: ENODEV if it is not there (any more), EACCES without permission, EBUSY if somebody else has
        the interface; WireError if it has no smoo interface.
        """
        self._backend = fresh_backend()
        found = self._find(bus, address)
        self._handle = self._backend.open_device(found)
        try:
            if reset:
                self.reset()
            self._open(found)
        except BaseException:
            self._backend.close_device(self._handle)
            raise

    def _find(self, bus: int, address: int) -> Any:
        for device in self._backend.enumerate_devices():
            descriptor = self._backend.get_device_descriptor(device)
            if (descriptor.bus, descriptor.address) == (bus, address):
                self._configurations = int(descriptor.bNumConfigurations)
                return device
        raise OSError(errno.ENODEV, f"no USB device {bus}-{address}: it has gone")

    def _open(self, found: Any) -> None:
        active = self._backend.get_configuration(self._handle)
        for index in range(self._configurations):
            configuration = self._backend.get_configuration_descriptor(found, index)
            if active not in (0, configuration.bConfigurationValue):
                continue
            number = self._interface(found, index, int(configuration.bNumInterfaces))
            if number is not None:
                if active == 0:
                    self._backend.set_configuration(self._handle, configuration.bConfigurationValue)
                self._backend.claim_interface(self._handle, number)
                self._number = number
                return
        raise WireError("the device has no interface FF/53/4D: it is not a smoo gadget")

    def _interface(self, found: Any, index: int, interfaces: int) -> int | None:
        for place in range(interfaces):
            interface = self._backend.get_interface_descriptor(found, place, 0, index)
            kind = (interface.bInterfaceClass, interface.bInterfaceSubClass, interface.bInterfaceProtocol)
            if kind == (INTERFACE_CLASS, INTERFACE_SUBCLASS, INTERFACE_PROTOCOL):
                describe = self._backend.get_endpoint_descriptor
                self._find_endpoints([describe(found, n, place, 0, index) for n in range(interface.bNumEndpoints)])
                return int(interface.bInterfaceNumber)
        return None

    def _find_endpoints(self, endpoints: list[Any]) -> None:
        """By type and direction: FunctionFS numbers them as it likes."""
        self._endpoints: dict[Pipe, int] = {}
        for endpoint in endpoints:
            shape = (endpoint.bEndpointAddress & _IN, endpoint.bmAttributes & 3)
            pipe = next((pipe for pipe in Pipe if pipe.value == shape), None)
            if pipe is None or pipe in self._endpoints:
                raise WireError(f"the smoo interface has an endpoint too many: {endpoint.bEndpointAddress:#x}")
            self._endpoints[pipe] = int(endpoint.bEndpointAddress)
        missing = [pipe.name for pipe in Pipe if pipe not in self._endpoints]
        if missing:
            raise WireError(f"the smoo interface lacks endpoints: {', '.join(missing)}")

    # -- transfers -----------------------------------------------------------------------------------------------
    def read(self, pipe: Pipe, span: Span) -> int:
        """One transfer of at most `span`, without a time limit; returns how many bytes came."""
        call = self._backend.intr_read if pipe is Pipe.REQUESTS else self._backend.bulk_read
        return int(call(self._handle, self._endpoints[pipe], self._number, span, _ENDLESS))

    def write(self, pipe: Pipe, span: Span) -> None:
        """One transfer of all of `span`, without a time limit. OSError (EIO) if the device took only a part."""
        call = self._backend.intr_write if pipe is Pipe.RESPONSES else self._backend.bulk_write
        count = int(call(self._handle, self._endpoints[pipe], self._number, span, _ENDLESS))
        if count != span.size_bytes:
            raise OSError(errno.EIO, f"{pipe.name}: {count} bytes of {span.size_bytes} were taken")

    def control_in(self, request_type: int, request: int, length: int, timeout_ms: int) -> bytes:
        """ep0 request with a data stage to us; ETIMEDOUT after `timeout_ms`, EPIPE if it is stalled."""
        buffer = Buffer(length)
        return buffer.get(self._control(request_type, request, buffer.span, timeout_ms))

    def control_out(self, request_type: int, request: int, data: bytes, timeout_ms: int) -> None:
        """ep0 request with a data stage to the device; errors as control_in, EIO if it took only a part."""
        buffer = Buffer(len(data))
        count = self._control(request_type, request, buffer.fill(data), timeout_ms)
        if count != len(data):
            raise OSError(errno.EIO, f"control request {request:#x}: {count} bytes of {len(data)} were taken")

    def _control(self, request_type: int, request: int, span: Span, timeout_ms: int) -> int:
        # wIndex: the interface, which is what the kernel routes a request to an interface by
        return int(self._backend.ctrl_transfer(self._handle, request_type, request, 0, self._number, span, timeout_ms))

    # -- the end -------------------------------------------------------------------------------------------------
    def reset(self) -> None:
        """USB port reset: toggles, halts and whatever both kernels still hold are gone; endless reads end.

        OSError(ENOENT) if the device came back as another one: open it anew.
        """
        self._backend.reset_device(self._handle)

    def close(self) -> None:
        self._backend.close_device(self._handle)
