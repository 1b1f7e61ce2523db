"""The FunctionFS binding on the real kernel: descriptors, ep0, endpoints, link loss, halt, removal. No bus, no roles.

The gadget is this process and nothing but gadget.usb; the host is pyusb in threads of it (libusb waits without the
GIL). Only dummy controllers are touched.
"""

import ctypes
import errno
import mmap
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import usb.backend.libusb1
import usb.core
import usb.util

from common import limits
from common.errors import Refused
from gadget.usb import udc
from gadget.usb.aio import AioContext, Command
from gadget.usb.configfs import GadgetTree
from gadget.usb.endpoint import DEEP, Endpoint, Transfer, open_file, pieces
from gadget.usb.functionfs import Ep0, EventType, FfsEvent
from gadget.usb.transport import PACKET_BYTES
from tests.e2e.v0_host import await_event, enumerated, fresh_backend

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(90)]
DEADLINE_S = 20.0
MIB = 1 << 20
LOST = {-errno.ESHUTDOWN, -errno.EAGAIN}
GADGETS = Path("/sys/kernel/config/usb_gadget")


class Gadget:
    """The binding and a poll loop. `events` and `results` (endpoint name, transfer, result) are all that was seen."""

    def __init__(self, tree: GadgetTree) -> None:
        self.tree = tree
        tree.create()
        self.ep0 = Ep0.open(tree.mount_point)
        self.aio = AioContext(4 * DEEP)
        commands = (Command.PWRITE, Command.PREAD, Command.PWRITE, Command.PREAD)
        self.endpoints = [
            Endpoint(f"ep{n}", open_file(tree.mount_point / f"ep{n}"), c, self.aio) for n, c in enumerate(commands, 1)
        ]
        self.requests, self.responses, self.bulk_in, self.bulk_out = self.endpoints
        self.memory = mmap.mmap(-1, 2 * MIB)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.events: list[EventType] = []
        self.setups: list[FfsEvent] = []
        self.results: list[tuple[str, Transfer, int]] = []
        self.on_setup: Callable[[FfsEvent], object] = self.ep0.stall

    def show(self) -> None:
        """Bind, and wait until the host has configured us."""
        seen = self.events.count(EventType.ENABLE)
        self.tree.bind()
        self.until_enabled(seen + 1)

    def until_enabled(self, times: int) -> None:
        self.until(f"ENABLE number {times}", lambda: self.events.count(EventType.ENABLE) >= times)
        await_event("enumeration", enumerated)

    @property
    def packet(self) -> int:
        return PACKET_BYTES[udc.speed(self.tree.udc)]

    def step(self, wait_s: float = 0.05) -> None:
        for endpoint in self.endpoints:
            endpoint.pump()
        ready = select.select([self.ep0.fd, self.aio.eventfd], [], [], wait_s)[0]
        if self.ep0.fd in ready:
            for event in self.ep0.events():
                self.events.append(event.type)
                if event.type is EventType.SETUP:
                    self.setups.append(event)
                    self.on_setup(event)
        for number, result in self.aio.completions():
            [(name, transfer)] = [(e.name, t) for e in self.endpoints if (t := e.ended(number)) is not None]
            self.results.append((name, transfer, result))

    def until(self, what: str, look: Callable[[], object]) -> None:
        end = time.monotonic() + DEADLINE_S
        while not look():
            assert time.monotonic() < end, (
                f"waited {DEADLINE_S} s for {what}; events {self.events}, results {self.results[-8:]}, "
                f"UDC {udc.state(self.tree.udc)}"
            )
            self.step()

    def result_of(self, future: "Future[Any]") -> Any:
        """Go on until the host's thread has its answer."""
        self.until("the host", future.done)
        return future.result()

    def ended(self, count: int) -> list[tuple[str, Transfer, int]]:
        """The next `count` completions."""
        self.until(f"{count} completions", lambda: len(self.results) >= count)
        ended, self.results = self.results[:count], self.results[count:]
        return ended

    def close(self) -> None:
        self.aio.close()
        for fd in (self.ep0.fd, *(endpoint.fd for endpoint in self.endpoints)):
            os.close(fd)
        self.tree.remove()


class Host:
    """pyusb on the gadget that is enumerated now; calls come back as futures, so that the gadget can go on."""

    def __init__(self) -> None:
        self.device = usb.core.find(idVendor=0x1D6B, idProduct=0x0104, backend=fresh_backend())
        self.interface = self.device.get_active_configuration()[(0, 0)]
        self.interrupt_in, self.interrupt_out, self.bulk_in, self.bulk_out = self.interface
        self._pool = ThreadPoolExecutor(4)

    def call(self, function: Callable[..., Any], *args: Any) -> "Future[Any]":
        return self._pool.submit(function, *args)

    def control(self, request_type: int, request: int, data: object) -> "Future[Any]":
        return self.call(self.device.ctrl_transfer, request_type, request, 0, 0, data, 5000)

    def leave(self) -> None:
        self._pool.shutdown()
        usb.util.dispose_resources(self.device)


def controller() -> str:
    dummies = [name for name in udc.controllers() if udc.is_dummy(name)]
    if not dummies:
        pytest.skip("no dummy USB device controller here")
    return dummies[-1]


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[GadgetTree]:
    tree = GadgetTree("binding", controller(), 0x1D6B, 0x0104, "b1", "binding test", tmp_path / "ffs")
    yield tree
    tree.remove()


@pytest.fixture
def gadget(tree: GadgetTree) -> Iterator[Gadget]:
    gadget = Gadget(tree)
    gadget.show()
    yield gadget
    gadget.close()


@pytest.fixture
def host(gadget: Gadget) -> Iterator[Host]:
    host = Host()
    yield host
    gadget.tree.unbind()  # whatever still waits in a thread of the host ends
    host.leave()


# -- descriptors and ep0 -----------------------------------------------------------------------------------------
def test_the_host_sees_what_was_written_at_this_speed(gadget: Gadget, host: Host) -> None:
    interface = host.interface
    assert (interface.bInterfaceClass, interface.bInterfaceSubClass, interface.bInterfaceProtocol) == (0xFF, 0x53, 0x4D)
    seen = [(bool(e.bEndpointAddress & 0x80), e.bmAttributes & 3, e.wMaxPacketSize) for e in interface]
    packet = gadget.packet
    assert seen == [(True, 3, packet), (False, 3, packet), (True, 2, packet), (False, 2, packet)]
    assert (host.device.serial_number, host.device.product) == ("b1", "binding test")
    assert udc.state(gadget.tree.udc) == "configured"


def test_a_vendor_in_request_is_answered_and_cut_to_what_was_asked(gadget: Gadget, host: Host) -> None:
    gadget.on_setup = lambda event: gadget.ep0.reply(event, b"SMOO\0\0\1\0")
    assert bytes(gadget.result_of(host.control(0xC1, 1, 8))) == b"SMOO\0\0\1\0"
    assert bytes(gadget.result_of(host.control(0xC1, 1, 4))) == b"SMOO"
    assert bytes(gadget.result_of(host.control(0xC1, 1, 64))) == b"SMOO\0\0\1\0"
    setup = gadget.setups[0]
    assert (setup.request_type, setup.request, setup.value, setup.length) == (0xC1, 1, 0, 8)


@pytest.mark.parametrize("size", [0, 1, 64, 65, 512, 784])
def test_a_vendor_out_request_of_any_size_is_read_whole(gadget: Gadget, host: Host, size: int) -> None:
    data, got = os.urandom(size), list[bytes]()
    gadget.on_setup = lambda event: got.append(gadget.ep0.read(event))
    assert gadget.result_of(host.control(0x41, 2, data)) == size
    assert got == [data]


@pytest.mark.parametrize(("request_type", "data"), [(0xC1, 8), (0x41, b"x" * 8), (0x41, b"")])
def test_a_stalled_request_gives_the_host_epipe_and_the_next_one_works(
    gadget: Gadget, host: Host, request_type: int, data: object
) -> None:
    with pytest.raises(usb.core.USBError) as caught:
        gadget.result_of(host.control(request_type, 9, data))
    assert caught.value.errno == errno.EPIPE
    gadget.on_setup = lambda event: gadget.ep0.reply(event, b"ok")
    assert bytes(gadget.result_of(host.control(0xC1, 1, 2))) == b"ok"


@pytest.mark.parametrize(("request_type", "data"), [(0xC1, 8), (0x41, b"x" * 8)])
def test_a_request_the_host_gave_up_is_cancelled_and_the_next_one_gets_its_own_answer(
    gadget: Gadget, host: Host, request_type: int, data: object
) -> None:
    held: list[FfsEvent] = []
    gadget.on_setup = held.append
    given_up = host.call(host.device.ctrl_transfer, request_type, 9, 0, 0, data, 200)
    gadget.until("the SETUP", lambda: held)  # and no read of ep0 after it: that would be its data stage, or a stall
    failure = given_up.exception(DEADLINE_S)
    assert isinstance(failure, usb.core.USBError) and failure.errno == errno.ETIMEDOUT
    late = host.control(0xC1, 1, 2)
    await_event("the newer SETUP", lambda: select.select([gadget.ep0.fd], [], [], 0)[0])
    time.sleep(0.1)  # nothing announces that the newer SETUP has cancelled the older
    if request_type & 0x80:
        gadget.ep0.reply(held[0], b"stale!!!")  # EIDRM: dropped
    else:
        assert gadget.ep0.read(held[0]) == b""
    gadget.on_setup = lambda event: gadget.ep0.reply(event, b"ok")
    assert bytes(gadget.result_of(late)) == b"ok"


@pytest.mark.parametrize(("request_type", "data", "told"), [(0xC1, 8, 0), (0x41, b"x" * 8, errno.EPIPE)])
def test_a_successor_abandons_what_its_predecessor_left_on_ep0(
    gadget: Gadget, host: Host, request_type: int, data: object, told: int
) -> None:
    gadget.ep0.abandon()  # ESRCH: nothing was left
    gadget.on_setup = lambda event: gadget.ep0.abandon()
    pending = host.control(request_type, 9, data)
    if told:
        with pytest.raises(usb.core.USBError) as caught:
            gadget.result_of(pending)
        assert caught.value.errno == told
    else:
        assert bytes(gadget.result_of(pending)) == b""
    gadget.on_setup = lambda event: gadget.ep0.reply(event, b"ok")
    assert bytes(gadget.result_of(host.control(0xC1, 1, 2))) == b"ok"


# -- endpoints ---------------------------------------------------------------------------------------------------
SIZES = (512, 1536, 65024, 65536, 66048, 131072, 512, 131584)


def test_bulk_out_payloads_arrive_in_order_byte_exact_several_deep(gadget: Gadget, host: Host) -> None:
    data, place, cut = [os.urandom(size) for size in SIZES], 0, []
    for size in SIZES:
        cut += pieces(None, gadget.base + place, size, gadget.packet)
        place += size + 1024  # room for a read rounded up
    gadget.bulk_out.queue(cut)

    def send() -> None:
        for payload in data:
            for start in range(0, len(payload), limits.TRANSFER_BYTES):
                host.bulk_out.write(payload[start : start + limits.TRANSFER_BYTES], 5000)

    gadget.result_of(host.call(send))
    ended = gadget.ended(len(cut))
    assert [transfer for _, transfer, _ in ended] == cut
    assert [result for _, _, result in ended] == [transfer.expected for transfer in cut]
    place = 0
    for payload in data:
        assert gadget.memory[place : place + len(payload)] == payload
        place += len(payload) + 1024


def test_bulk_in_payloads_leave_in_order_byte_exact_several_deep(gadget: Gadget, host: Host) -> None:
    data = os.urandom(sum(SIZES))
    gadget.memory[: len(data)] = data
    place, cut = 0, []
    for size in SIZES:
        cut += pieces(None, gadget.base + place, size, gadget.packet)
        place += size
    gadget.bulk_in.queue(cut)

    def receive() -> bytes:
        got = b""
        for size in SIZES:
            for start in range(0, size, limits.TRANSFER_BYTES):
                got += bytes(host.bulk_in.read(min(limits.TRANSFER_BYTES, size - start), 5000))
        return got

    assert gadget.result_of(host.call(receive)) == data
    ended = gadget.ended(len(cut))
    assert [(transfer, result) for _, transfer, result in ended] == [(piece, piece.expected) for piece in cut]


def test_messages_of_28_bytes_go_both_ways_one_transfer_each(gadget: Gadget, host: Host) -> None:
    messages = [bytes([index]) * 28 for index in range(12)]
    for index, message in enumerate(messages):
        gadget.memory[index * 64 : index * 64 + 28] = message
    gadget.requests.queue([Transfer(None, gadget.base + 64 * index, 28, 28) for index in range(12)])
    got = gadget.result_of(host.call(lambda: [bytes(host.interrupt_in.read(1024, 5000)) for _ in messages]))
    assert got == messages
    gadget.ended(12)
    room = gadget.base + 65536
    gadget.responses.queue([Transfer(None, room + 1024 * index, 1024, 28) for index in range(12)])
    gadget.result_of(host.call(lambda: [host.interrupt_out.write(message, 5000) for message in messages]))
    assert [result for _, _, result in gadget.ended(12)] == [28] * 12
    assert [gadget.memory[65536 + 1024 * i : 65536 + 1024 * i + 28] for i in range(12)] == messages


def test_a_short_payload_is_told_by_its_count(gadget: Gadget, host: Host) -> None:
    gadget.bulk_out.queue(pieces(None, gadget.base, 4096, gadget.packet))
    gadget.result_of(host.call(host.bulk_out.write, b"x" * 700, 5000))
    [(_, transfer, result)] = gadget.ended(1)
    assert (transfer.expected, result) == (4096, 700)


def test_memory_that_is_gone_fails_that_transfer_and_the_link_stays_up(gadget: Gadget, host: Host) -> None:
    gadget.bulk_in.queue([Transfer(None, 8, 512, 512), Transfer(None, gadget.base, 512, 512)])
    assert len(gadget.result_of(host.call(host.bulk_in.read, 512, 5000))) == 512
    assert [result for _, _, result in gadget.ended(2)] == [-errno.EFAULT, 512]
    assert udc.state(gadget.tree.udc) == "configured"


# -- the link goes and comes back ----------------------------------------------------------------------------------
def pull_by_unbind(gadget: Gadget) -> Callable[[], None]:
    gadget.tree.unbind()
    return gadget.tree.bind


def pull_by_authorized(gadget: Gadget) -> Callable[[], None]:
    place = await_event("the device in sysfs", enumerated)
    assert place is not None
    (place / "authorized").write_text("0")
    return lambda: void((place / "authorized").write_text("1"))


def void(value: object) -> None:
    """For lambdas."""


def fill(gadget: Gadget) -> list[Transfer]:
    """Two transfers on each endpoint, which nobody serves."""
    queued = []
    for index, endpoint in enumerate(gadget.endpoints):
        # More than the 64 bytes that dummy_hcd's FIFO takes: a shorter transfer on an IN endpoint ends at once
        two = [Transfer(None, gadget.base + 4096 * (2 * index + k), 1024, 1024) for k in (0, 1)]
        endpoint.queue(two)
        queued += two
    gadget.step(0)
    assert gadget.aio.outstanding == len(queued)
    return queued


@pytest.mark.parametrize("pull", [pull_by_unbind, pull_by_authorized])
def test_link_loss_fails_everything_outstanding_once_and_the_same_fds_work_again(
    gadget: Gadget, pull: Callable[[Gadget], Callable[[], None]]
) -> None:
    for _ in range(2):
        queued = fill(gadget)
        plug = pull(gadget)
        ended = gadget.ended(len(queued))
        assert {result for _, _, result in ended} == {-errno.ESHUTDOWN}
        assert sorted(t.address for _, t, _ in ended) == sorted(t.address for t in queued)
        gadget.bulk_in.queue([Transfer(None, gadget.base, 512, 512)])
        assert [result for _, _, result in gadget.ended(1)] == [-errno.EAGAIN]  # at once, and io_submit did not block
        seen = gadget.events.count(EventType.ENABLE)
        plug()
        gadget.until_enabled(seen + 1)
        host = Host()
        gadget.memory[:512] = os.urandom(512)
        gadget.bulk_in.queue([Transfer(None, gadget.base, 512, 512)])
        assert bytes(gadget.result_of(host.call(host.bulk_in.read, 512, 5000))) == gadget.memory[:512]
        assert [result for _, _, result in gadget.ended(1)] == [512]
        host.leave()
    assert gadget.results == [] and gadget.aio.outstanding == 0


def test_set_interface_is_a_clean_boundary_that_raises_enable(gadget: Gadget, host: Host) -> None:
    queued = fill(gadget)
    usb.util.claim_interface(host.device, 0)
    seen = gadget.events.count(EventType.ENABLE)
    gadget.result_of(host.call(host.device.set_interface_altsetting, 0, 0))
    gadget.until_enabled(seen + 1)
    assert {result for _, _, result in gadget.ended(len(queued))} == {-errno.ESHUTDOWN}


def test_a_halted_in_endpoint_gives_the_host_epipe_until_it_clears_the_halt(gadget: Gadget, host: Host) -> None:
    usb.util.claim_interface(host.device, 0)
    gadget.bulk_in.halt()
    gadget.requests.halt()
    for endpoint in (host.bulk_in, host.interrupt_in):
        with pytest.raises(usb.core.USBError) as caught:
            gadget.result_of(host.call(endpoint.read, 512, 5000))
        assert caught.value.errno == errno.EPIPE
    gadget.result_of(host.call(host.device.set_interface_altsetting, 0, 0))
    gadget.until_enabled(2)
    gadget.bulk_in.queue([Transfer(None, gadget.base, 512, 512)])
    assert len(gadget.result_of(host.call(host.bulk_in.read, 512, 5000))) == 512


def test_an_in_endpoint_with_queued_transfers_cannot_be_halted(gadget: Gadget) -> None:
    gadget.bulk_in.queue([Transfer(None, gadget.base, 512, 512)])
    gadget.step(0)
    with pytest.raises(BlockingIOError):
        gadget.bulk_in.halt()


def test_a_halt_while_the_link_is_down_is_told_eagain(tree: GadgetTree) -> None:
    gadget = Gadget(tree)
    with pytest.raises(BlockingIOError):
        gadget.bulk_in.halt()
    gadget.close()


# -- the tree ----------------------------------------------------------------------------------------------------
def test_kill_9_of_the_only_owner_unbinds_and_a_successor_can_take_the_tree(tree: GadgetTree) -> None:
    ready, told = os.pipe()
    owner = os.fork()
    if owner == 0:
        try:
            gadget = Gadget(tree)
            gadget.show()
            fill(gadget)
            os.write(told, b"!")
            signal.pause()
        finally:
            os._exit(1)
    os.close(told)
    assert select.select([ready], [], [], DEADLINE_S)[0] and os.read(ready, 1) == b"!", "the owner did not come up"
    os.close(ready)
    assert tree.bound_udc() == tree.udc
    os.kill(owner, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(owner, 0)[1]) == signal.SIGKILL
    await_event("the kernel to unbind", lambda: tree.bound_udc() == "")
    tree.remove()
    successor = Gadget(tree)
    successor.show()
    successor.close()


def test_create_twice_and_bind_twice_take_over_what_is_there(gadget: Gadget) -> None:
    gadget.tree.create()
    gadget.tree.bind()
    assert gadget.tree.bound_udc() == gadget.tree.udc
    assert Path("/proc/mounts").read_text().count(str(gadget.tree.mount_point)) == 1
    assert udc.state(gadget.tree.udc) == "configured"


def test_a_controller_of_another_gadget_is_refused_as_busy(gadget: Gadget, tmp_path: Path) -> None:
    other = Gadget(GadgetTree("other", gadget.tree.udc, 1, 2, "s", "p", tmp_path / "other"))
    try:
        with pytest.raises(Refused, match=rf"^{gadget.tree.udc}: busy: gadget binding uses it: ") as caught:
            other.tree.bind()
        assert caught.value.status == 3
    finally:
        other.close()
    assert udc.state(gadget.tree.udc) == "configured"


def test_a_controller_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    gadget = Gadget(GadgetTree("nowhere", "no.such", 1, 2, "s", "p", tmp_path / "ffs"))
    try:
        with pytest.raises(Refused, match=r"^no\.such: no such USB device controller: choose from: .*dummy"):
            gadget.tree.bind()
    finally:
        gadget.close()


def test_a_tree_without_descriptors_cannot_be_bound(tree: GadgetTree) -> None:
    tree.create()
    with pytest.raises(OSError, match="bind to dummy_udc") as caught:
        tree.bind()
    assert caught.value.errno == errno.EBUSY


def test_removal_leaves_nothing_and_a_second_one_is_no_error(tree: GadgetTree) -> None:
    gadget = Gadget(tree)
    gadget.show()
    fill(gadget)
    tree.remove()  # with all fds still open, and transfers outstanding
    assert not tree.exists() and "binding" not in os.listdir(GADGETS)
    assert str(tree.mount_point) not in Path("/proc/mounts").read_text()
    assert not tree.mount_point.exists()
    assert {result for _, _, result in gadget.ended(8)} <= LOST
    gadget.close()
    tree.remove()
