"""A usb that dies while f_fs copies to it what the host has sent: the kernel's deadlock, and the way around it.

The copy is held up at will: it meets a page that is not there, in memory whose faults a userfaultfd is to serve, which
nobody does before the owner is killed. Its end lets the fault go on. Without somebody who holds the memory, the worker
of f_fs would then wait for itself for ever, and the controller with it (gadget.usb.mm_hold).
"""

import ctypes
import errno
import fcntl
import mmap
import os
import select
import signal
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bus.runtime import Runtime, Side
from gadget.usb import mm_hold, predecessor, udc
from gadget.usb.aio import AioContext, Command
from gadget.usb.configfs import GadgetTree
from gadget.usb.endpoint import Endpoint, open_file
from gadget.usb.functionfs import Ep0, EventType
from gadget.usb.kept import Peer
from tests.e2e.raw_device import RawDevice
from tests.e2e.v0_host import await_event, enumerated

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]
DEADLINE_S = 20.0
ROLE = "usb"
_USERFAULTFD = {"x86_64": 323, "aarch64": 282}[os.uname().machine]
_API, _REGISTER = 0xC018AA3F, 0xC020AA00  # linux/userfaultfd.h: UFFDIO_API, UFFDIO_REGISTER
_API_VERSION, _MODE_MISSING = 0xAA, 1


class Store:
    """The gadget, bound and configured, its descriptors held here as the fd store does; who reads dies elsewhere."""

    def __init__(self, tree: GadgetTree, runtime: Runtime) -> None:
        self.tree, self.runtime = tree, runtime
        self.ours: list[int] = []  # who held a dead owner's memory is our child, as it is the spawner's otherwise
        tree.create()
        self.ep0 = Ep0.open(tree.mount_point)
        self.fds = [open_file(tree.mount_point / f"ep{n}") for n in range(1, 5)]
        tree.bind()
        self.until_enabled()
        place = await_event("enumeration", enumerated)
        assert place is not None
        self.host = RawDevice(place)

    def until_enabled(self) -> None:
        await_event("ENABLE", lambda: any(event.type is EventType.ENABLE for event in self.ep0.events()))

    def close(self) -> None:
        self.host.close()
        for fd in (self.ep0.fd, *self.fds):
            os.close(fd)
        predecessor.remove(self.tree, mm_hold.left(self.runtime, ROLE))
        for pid in self.ours:
            os.waitpid(pid, 0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    dummies = [name for name in udc.controllers() if udc.is_dummy(name)]
    if not dummies:
        pytest.skip("no dummy USB device controller here")
    runtime = Runtime(Side.GADGET, "copying", tmp_path / "run")
    runtime.create()
    store = Store(GadgetTree("copying", dummies[-1], 0x1D6B, 0x0104, "c1", "copy test", tmp_path / "ffs"), runtime)
    yield store
    store.close()


def read_into_a_hole(store: Store, told: int) -> None:
    """In the process that is to die: a read on bulk OUT into a page whose fault nobody serves; tell when it is met."""
    mm_hold.hold(store.runtime, ROLE, 1, {})
    page = mmap.mmap(-1, mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    faults = ctypes.CDLL(None).syscall(_USERFAULTFD, os.O_CLOEXEC)
    fcntl.ioctl(faults, _API, struct.pack("=QQQ", _API_VERSION, 0, 0))
    fcntl.ioctl(faults, _REGISTER, struct.pack("=QQQQ", address, mmap.PAGESIZE, _MODE_MISSING, 0))
    AioContext(4).submit(Command.PREAD, store.fds[3], address, 512)
    os.write(told, b"r")
    select.select([faults], [], [])
    os.write(told, b"c")
    signal.pause()


def killed_in_a_copy(store: Store) -> None:
    """Fork an owner, send it a packet, kill it while the packet is being copied."""
    told, tell = os.pipe()
    owner = os.fork()
    if owner == 0:
        try:
            read_into_a_hole(store, tell)
        finally:
            os._exit(1)
    os.close(tell)
    assert os.read(told, 1) == b"r"
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(store.host.endpoints[3].write, b"x" * 512, 5000)
        assert sent.result(DEADLINE_S) == 512
    assert select.select([told], [], [], DEADLINE_S)[0] and os.read(told, 1) == b"c", "the copy meets no hole"
    os.close(told)
    store.ours += [hold.pid for hold in mm_hold.left(store.runtime, ROLE)]
    os.kill(owner, signal.SIGKILL)
    os.waitpid(owner, 0)


def test_a_successor_goes_on_at_the_same_address(store: Store) -> None:
    killed_in_a_copy(store)
    aio = AioContext(4)
    bulk_in, bulk_out = (
        Endpoint("ep3", store.fds[2], Command.PWRITE, aio),
        Endpoint("ep4", store.fds[3], Command.PREAD, aio),
    )
    holds = mm_hold.left(store.runtime, ROLE)
    assert len(holds) == 1
    assert predecessor.end(holds, store.tree, bulk_out, Peer.V1), "the gadget had to be unbound"
    assert mm_hold.left(store.runtime, ROLE) == []
    bulk_in.halt()  # EAGAIN if anything of the dead owner were still queued
    with pytest.raises(OSError) as caught:
        store.host.endpoints[3].write(b"y" * 512, 5000)
    assert caught.value.errno == errno.EPIPE, "nothing may arrive before the boundary"
    store.host.set_interface()
    store.until_enabled()
    page = mmap.mmap(-1, mmap.PAGESIZE)
    aio.submit(Command.PREAD, store.fds[3], ctypes.addressof(ctypes.c_char.from_buffer(page)), 512)
    store.host.endpoints[3].write(b"z" * 512, 5000)
    assert select.select([aio.eventfd], [], [], DEADLINE_S)[0] and aio.completions()[0][1] == 512
    assert page[:512] == b"z" * 512
    aio.close()


@pytest.mark.parametrize("peer", [Peer.V0, Peer.V1])
def test_a_link_that_is_down_or_of_v0_is_unbound(store: Store, peer: Peer) -> None:
    killed_in_a_copy(store)
    if peer is Peer.V1:
        (store.host.place / "authorized").write_text("0")
        await_event("the link to be down", lambda: any(e.type is EventType.DISABLE for e in store.ep0.events()))
    aio = AioContext(4)
    bulk_out = Endpoint("ep4", store.fds[3], Command.PREAD, aio)
    assert not predecessor.end(mm_hold.left(store.runtime, ROLE), store.tree, bulk_out, peer)
    assert store.tree.bound_udc() == "" and mm_hold.left(store.runtime, ROLE) == []
    aio.close()
    store.tree.bind()
    store.until_enabled()


def test_the_gadget_can_be_taken_away(store: Store) -> None:
    """The clean-up of the fixture is the test: unbind, unmount and removal end, with the hold."""
    killed_in_a_copy(store)
    assert len(mm_hold.left(store.runtime, ROLE)) == 1
    predecessor.remove(store.tree, mm_hold.left(store.runtime, ROLE))
    assert mm_hold.left(store.runtime, ROLE) == [] and not store.tree.exists()
