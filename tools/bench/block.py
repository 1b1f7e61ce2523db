"""System `block`: a ublk device answered from memory by our own worker code; no bus, no USB.

What ublk, its binding and our request table cost. The worker is a process of its own, as a queue role is.
"""

import ctypes
import errno
import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common import limits
from common.errors import Exit, Refused
from gadget.ublk.abi import BlockOp
from gadget.ublk.control import Control, DeviceParams
from gadget.ublk.core import QueueCore
from gadget.ublk.device import QueueDevice, settle_queue_limits
from gadget.ublk.role import _OPS
from tools.bench.system import DISK_BYTES, Ready, await_

_MARK = 0xBE9C  # so that no role takes it for its own
_BLOCK = 4096


@contextmanager
def block(place: Path) -> Iterator[Ready]:
    """See the module."""
    if not Path("/dev/ublk-control").exists():
        raise Refused("block: /dev/ublk-control is not there: 'modprobe ublk_drv'", Exit.LACKING)
    with Control() as control:
        number = _free(control)
        control.add(number, limits.QUEUE_DEPTH, limits.MAX_IO_BYTES, _MARK)
        pid = 0
        try:
            control.set_params(number, DeviceParams(DISK_BYTES, _BLOCK, limits.MAX_IO_BYTES))
            pid = os.fork()
            if pid == 0:
                _child(number)
            device = Path(f"/dev/ublkb{number}")
            await_(f"{device}", device.exists)
            settle_queue_limits(number, limits.QUEUE_DEPTH)
            yield Ready(device, lambda: {"worker": pid})
        finally:
            if pid:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            control.stop(number)
            control.delete_async(number)


def _free(control: Control) -> int:
    for number in range(64):
        with suppress(FileNotFoundError):
            if control.find(number) is None and not Path(f"/dev/ublkc{number}").exists():
                return number
    raise Refused("block: no free ublk device number below 64", Exit.BUSY)


def _child(number: int) -> None:
    try:
        _serve(number)
    finally:
        os._exit(1)  # never back into the command that forked us


def _serve(number: int) -> None:
    depth, slot = limits.QUEUE_DEPTH, limits.MAX_IO_BYTES
    disk, arena = ctypes.create_string_buffer(DISK_BYTES), ctypes.create_string_buffer(depth * slot + limits.PAGE)
    at, slots = ctypes.addressof(disk), -(-ctypes.addressof(arena) // limits.PAGE) * limits.PAGE
    device = _open(number, depth)
    device.fetch_all(lambda tag: slots + tag * slot)
    threading.Thread(target=lambda: Control().start(number, os.getpid()), daemon=True).start()
    core, poll = QueueCore(_BLOCK, depth), select.epoll()
    poll.register(device.eventfd, select.EPOLLIN)
    while not device.stopped:
        poll.poll()
        for tag, op, start, sectors, _ in device.requests():
            taken = core.take(tag, _OPS[BlockOp(op)], start, sectors)
            if op == BlockOp.READ:
                ctypes.memmove(slots + tag * slot, at + start * 512, sectors * 512)
            elif op == BlockOp.WRITE:
                ctypes.memmove(at + start * 512, slots + tag * slot, sectors * 512)
            commit = core.complete(taken.sequence, 0)
            assert commit is not None
            device.commit(commit.tag, commit.result)
        device.submit()


def _open(number: int, depth: int) -> QueueDevice:
    def opened() -> QueueDevice | None:
        try:
            return QueueDevice(number, depth)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EBUSY):
                raise
            return None

    device: QueueDevice = await_(f"/dev/ublkc{number}", opened)
    return device
