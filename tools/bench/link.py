"""System `link`: the bare endpoints, our FunctionFS and usbfs bindings and nothing else. No ublk, no bus, no file.

Streams of transfers in each direction, over sizes and depths, of which the fastest is the yardstick; and round trips
as one 4K read makes them: a small transfer on bulk IN, 4 KiB and a head back on bulk OUT. The gadget's end is a process
of its own (tools.bench.link_gadget), told over a socket what comes next.
"""

import ctypes
import json
import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from common.errors import Exit, Refused
from gadget.usb import udc
from gadget.usb.configfs import GadgetTree
from host.usb.usbfs import UrbKind, UsbFs
from tools.bench import link_gadget, usage
from tools.bench.core import Figure
from tools.bench.link_gadget import REPLY_BYTES, Way
from tools.bench.system import await_

SIZES = (4096, 16384, 65536)
DEPTHS = (1, 2, 4)
_SERIAL = "replug-bench-link"
_INTERFACE = 0
_LIMIT_S = 30.0  # for an answer of the gadget's end


class HostEnd:
    """The claimed interface. `run` does one pattern for some seconds."""

    def __init__(self, device: Path, gadget: socket.socket) -> None:
        self._usbfs = UsbFs(int((device / "busnum").read_text()), int((device / "devnum").read_text()))
        self._usbfs.claim(_INTERFACE)
        self._in, self._out = _bulk_endpoints((device / "descriptors").read_bytes())
        self._gadget = gadget
        self._poll = select.poll()
        self._poll.register(self._usbfs.fd, select.POLLOUT)
        self._memory = ctypes.create_string_buffer(max(*SIZES, REPLY_BYTES))
        self._address = ctypes.addressof(self._memory)

    def close(self) -> None:
        self._usbfs.close()

    def run(self, way: Way, size_bytes: int, depth: int, seconds: float) -> tuple[float, int, float]:
        """Seconds it took, transfers (round trips) that ended, and CPU seconds of ours."""
        self._gadget.send(json.dumps([way, size_bytes, depth]).encode())
        self._usbfs.set_interface(_INTERFACE, 0)  # raises ENABLE there: both begin with nothing queued
        assert self._gadget.recv(64) == b"ready"
        began, cpu = time.monotonic(), time.process_time()
        if way is Way.ROUND_TRIP:
            count = self._answer(depth, began + seconds)
        else:
            count = self._stream(way, size_bytes, depth, began + seconds)
        return time.monotonic() - began, count, time.process_time() - cpu

    def stop(self) -> None:
        """Both kernels let go of what is still queued."""
        self._usbfs.set_interface(_INTERFACE, 0)
        while self._usbfs.outstanding:
            self._poll.poll()
            self._usbfs.reap()
        assert self._gadget.recv(64) == b"stopped"

    def _stream(self, way: Way, size_bytes: int, depth: int, end: float) -> int:
        endpoint, count = self._out if way is Way.READ else self._in, 0
        for _ in range(depth):
            self._usbfs.submit(UrbKind.BULK, endpoint, self._address, size_bytes)
        while time.monotonic() < end:
            self._poll.poll()
            while (reaped := self._usbfs.reap()) is not None:
                _check(reaped.error)
                count += 1
                self._usbfs.submit(UrbKind.BULK, endpoint, self._address, size_bytes)
        return count

    def _answer(self, depth: int, end: float) -> int:
        """Reads of what is asked for, and an answer to each."""
        count, asks = 0, set()
        for _ in range(depth + 1):
            asks.add(self._usbfs.submit(UrbKind.BULK, self._in, self._address, 4096))
        while time.monotonic() < end:
            self._poll.poll()
            while (reaped := self._usbfs.reap()) is not None:
                _check(reaped.error)
                if reaped.number in asks:
                    asks.remove(reaped.number)
                    self._usbfs.submit(UrbKind.BULK, self._out, self._address, REPLY_BYTES)
                    asks.add(self._usbfs.submit(UrbKind.BULK, self._in, self._address, 4096))
                else:
                    count += 1
        return count


def _check(error: int) -> None:
    if error:
        raise Refused(f"link: a transfer failed: {os.strerror(error)}", Exit.FAULT)


def _bulk_endpoints(descriptors: bytes) -> tuple[int, int]:
    """Addresses of bulk IN and bulk OUT."""
    found: dict[int, int] = {}
    while descriptors:
        length, kind = descriptors[0], descriptors[1]
        if kind == 5 and descriptors[3] & 3 == 2:
            found[descriptors[2] & 0x80] = descriptors[2]
        descriptors = descriptors[length:]
    return found[0x80], found[0]


@contextmanager
def _both_ends(place: Path) -> Iterator[tuple[HostEnd, int]]:
    tree = GadgetTree("replug-bench-link", udc.choose(None), 0x1D6B, 0x0104, _SERIAL, "replug", place / "ffs")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(_LIMIT_S)
    with ExitStack() as stack:
        stack.callback(tree.remove)
        tree.create()
        pid = os.fork()
        if pid == 0:
            ours.close()
            link_gadget.live(tree, theirs)
        stack.callback(os.waitpid, pid, 0)
        stack.callback(os.kill, pid, signal.SIGKILL)
        theirs.close()
        if ours.recv(64) != b"bound":
            raise Refused("link: the gadget's end did not come up", Exit.FAULT)
        host = HostEnd(await_("the gadget to enumerate", _device), ours)
        stack.callback(host.close)
        yield host, pid


def _device() -> Path | None:
    for serial in Path("/sys/bus/usb/devices").glob("*/serial"):
        if serial.read_text().strip() == _SERIAL and (serial.parent / "bConfigurationValue").read_text().strip() == "1":
            return serial.parent
    return None


def measure(place: Path, seconds: float, quick: bool) -> Iterator[Figure]:
    """Every pattern; `quick`: only those that have been the fastest."""
    with _both_ends(place) as (host, pid):
        for way in (Way.READ, Way.WRITE):
            for size in SIZES[-1:] if quick else SIZES:
                for depth in DEPTHS[1:] if quick else DEPTHS:
                    yield _one(host, pid, f"{way} {size >> 10}K x{depth}", way, size, depth, seconds)
        for depth in (1, 4):
            yield _one(host, pid, f"round trip 4K x{depth}", Way.ROUND_TRIP, REPLY_BYTES, depth, seconds)


def _one(host: HostEnd, pid: int, name: str, way: Way, size: int, depth: int, seconds: float) -> Figure:
    before = usage.all_spent({"gadget": pid, "host": os.getpid()})
    took, count, _ = host.run(way, size, depth, seconds)
    costs = usage.since(before, usage.all_spent({"gadget": pid, "host": os.getpid()}))
    host.stop()
    moved = count * (4096 if way is Way.ROUND_TRIP else size)
    latency = {"mean": took / count * depth * 1e6} if count else {}
    return Figure("link", name, took, count, moved, latency, costs)
