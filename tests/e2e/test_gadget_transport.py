"""The transport's answer to transfers that fail: link loss is waited out, anything else starts the link over."""

import mmap
import time
from collections.abc import Callable, Iterator
from ctypes import addressof, c_char
from pathlib import Path

import pytest

from bus.loop import Loop
from common.log import Log
from common.wire import Op, Request
from common.wire_v1 import Record
from gadget.usb import udc
from gadget.usb.configfs import GadgetTree
from gadget.usb.core import Pending, Send
from gadget.usb.kept import Peer
from gadget.usb.transport import Setup, Transport
from tests.e2e.raw_device import RawDevice
from tests.e2e.v0_host import await_event, enumerated

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]
NOWHERE = 8  # an address no process has mapped
PENDING = Pending("queue.a", 1, 1, 0, Request(Op.WRITE, 0, 1, 0, 1))


class Recorder:
    """A handler that only writes down what it is told."""

    def __init__(self) -> None:
        self.enables, self.losses = 0, list[str]()

    def enabled(self) -> None:
        self.enables += 1

    def lost(self, why: str) -> None:
        self.losses.append(why)

    def broken(self, why: str) -> None:
        raise AssertionError(why)

    def setup(self, setup: Setup) -> None:
        setup.stall()

    def message(self, data: bytes) -> None: ...
    def filled(self, pending: Pending, epoch: int) -> None: ...
    def left(self, pending: Pending, epoch: int) -> None: ...
    def records(self, placed: list[tuple[Record, int]], frame: memoryview) -> None: ...


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[GadgetTree]:
    dummies = [name for name in udc.controllers() if udc.is_dummy(name)]
    if not dummies:
        pytest.skip("no dummy USB device controller here")
    tree = GadgetTree("transport", dummies[-1], 0x1D6B, 0x0104, "t1", "transport test", tmp_path / "ffs")
    yield tree
    tree.remove()


def run_until(loop: Loop, what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20

    def look() -> None:
        if condition():
            loop.stop()
        assert time.monotonic() < deadline, f"waited 20 s for {what}"

    loop._code = None
    loop.before_wait(look)
    loop.every(0.05, lambda: None)
    loop.run()
    loop._before_wait.remove(look)


def test_a_transfer_that_fails_while_the_link_is_up_starts_it_over_and_leaves_nothing_disowned(
    tree: GadgetTree, tmp_path: Path
) -> None:
    """Seen with EFAULT and ENOMEM: no ENABLE comes by itself then, and the side waited for one for ever."""
    loop, handler = Loop(), Recorder()
    transport = Transport(loop, Log(tmp_path / "log", "usb"), tree, handler, {})
    transport.bind()
    run_until(loop, "the first ENABLE", lambda: handler.enables == 1)
    transport.begin_data(Peer.V0)
    transport.arm()
    transport.send(Send(PENDING, 4096), 1, NOWHERE)
    transport.submit()
    run_until(loop, "the second ENABLE", lambda: handler.enables == 2)
    run_until(loop, "the kernel to let go of old transfers", lambda: transport.settled)
    assert handler.losses == ["re-enumerating"]
    assert "Bad address" in (tmp_path / "log").read_text()


def test_a_transfer_that_slipped_into_the_next_epoch_starts_the_link_over(tree: GadgetTree, tmp_path: Path) -> None:
    """Found by review: we were stopped between looking at ep0 and submitting, and waited for that transfer for ever."""
    loop, handler = Loop(), Recorder()
    transport = Transport(loop, Log(tmp_path / "log", "usb"), tree, handler, {})
    transport.bind()
    run_until(loop, "the first ENABLE", lambda: handler.enables == 1)
    transport.begin_data(Peer.V0)
    place = await_event("the gadget to be enumerated", enumerated)
    host = RawDevice(place)
    host.reset()  # DISABLE and ENABLE, which the loop has not heard of
    memory = mmap.mmap(-1, 4096)
    transport.fill(PENDING, 1, addressof(c_char.from_buffer(memory)), 512)
    transport._planes[Peer.V0].pump()
    run_until(loop, "the link to start over", lambda: handler.enables == 3)
    run_until(loop, "the kernel to let go of old transfers", lambda: transport.settled)
    assert handler.losses == ["enabled anew", "re-enumerating"]
    host.close()


def test_an_enable_between_two_looks_at_ep0_makes_what_was_submitted_there_doubtful(
    tree: GadgetTree, tmp_path: Path
) -> None:
    """A Request that goes out twice in one epoch would shift every payload after it (v0 carries no epoch)."""
    loop, handler = Loop(), Recorder()
    transport = Transport(loop, Log(tmp_path / "log", "usb"), tree, handler, {})
    transport.bind()
    run_until(loop, "the first ENABLE", lambda: handler.enables == 1)
    transport.begin_data(Peer.V0)
    host = RawDevice(await_event("the gadget to be enumerated", enumerated))
    plane = transport._planes[Peer.V0]
    pump = plane.pump

    def reset_and_pump() -> None:
        host.reset()
        pump()

    plane.pump = reset_and_pump  # type: ignore[method-assign]
    transport.send(Send(PENDING, 0), 1, 0)
    transport.submit()
    plane.pump = pump  # type: ignore[method-assign]
    run_until(loop, "the link to start over", lambda: handler.enables == 3)
    assert handler.losses == ["enabled anew", "re-enumerating"]
    host.close()


def test_a_frame_whose_end_tells_nobody_is_found_when_the_link_is_lost(tree: GadgetTree, tmp_path: Path) -> None:
    """Until the kernel has let go of all transfers of an epoch, nothing is read into a slot in the next one."""
    loop, handler = Loop(), Recorder()
    transport = Transport(loop, Log(tmp_path / "log", "usb"), tree, handler, {})
    transport.bind()
    run_until(loop, "the first ENABLE", lambda: handler.enables == 1)
    transport.begin_data(Peer.V1, 1)  # and not armed: no read, whose end tells, ends with the link
    transport.send(Send(PENDING, 0), 1, 0)
    transport.submit()
    assert transport._endpoints.payloads_in.in_flight == 1
    tree.unbind()
    run_until(loop, "the loss of the link", lambda: len(handler.losses) == 1)
    run_until(loop, "the kernel to let go of old transfers", lambda: transport.settled)


def test_a_frame_whose_end_tells_nobody_does_not_start_the_link_over(tree: GadgetTree, tmp_path: Path) -> None:
    """Found by review: an end between the last look and the limit was taken for a transfer of the new epoch."""
    loop, handler = Loop(), Recorder()
    transport = Transport(loop, Log(tmp_path / "log", "usb"), tree, handler, {})
    transport.bind()
    run_until(loop, "the first ENABLE", lambda: handler.enables == 1)
    transport.begin_data(Peer.V1, 1)
    transport.send(Send(PENDING, 0), 1, 0)
    transport.submit()
    host = RawDevice(await_event("the gadget to be enumerated", enumerated))
    transport._look = lambda after_s: None  # type: ignore[method-assign]
    host.reset()
    run_until(loop, "the second ENABLE", lambda: handler.enables == 2)
    run_until(loop, "the kernel to let go of old transfers", lambda: transport.settled)
    assert handler.losses == ["enabled anew"]
    host.close()
