"""What a dead predecessor left in the kernel ends here, before its successor does anything with the endpoints.

Its transfers outlive it, because somebody holds its memory (gadget.usb.mm_hold says why). They end with that process,
which is safe as soon as no byte that the host has sent is being copied: the endpoint is halted, so nothing more
arrives; then a read of ours goes through f_fs's one ordered queue behind everything that had arrived.
"""

import contextlib
import ctypes
import errno
import mmap
import os
import select
import time
from collections.abc import Sequence
from typing import Final

from gadget.usb.aio import AioContext, Command
from gadget.usb.endpoint import Endpoint, open_file
from gadget.usb.kept import ENDPOINT_NAMES, Peer
from gadget.usb.mm_hold import Hold
from gadget.usb.mounted import MountedFfs
from gadget.usb.tree import Tree

_PASSING_S: Final = 5.0  # f_fs's queue only copies: longer is a kernel in trouble, and unbinding says so
_COPIED_S: Final = 0.5  # what was being copied when a link went down has been: some 64 KiB between locked pages


def end(holds: Sequence[Hold], tree: Tree, bulk_out: Endpoint, peer: Peer) -> bool:
    """End the predecessor's transfers. False if that took an unbinding: for v0, or because the link is down.

    Unbinding ends them as well, and waits for the queue. A peer that is NONE was never read from. A gadget that is not
    ours stays bound: with a v0 host its halt is no harm, as that has to begin anew.
    """
    ours = not isinstance(tree, MountedFfs)
    if peer is Peer.V1 or (peer is Peer.V0 and not ours):
        with contextlib.suppress(OSError):  # refused (dwc3 does while reads are queued): then little is left to chance
            bulk_out.halt()
    stays = peer is Peer.NONE or ((peer is Peer.V1 or not ours) and _passed(bulk_out.fd))
    if not stays:
        _let_go(tree)
    for hold in holds:
        hold.end()
    return stays or not ours


def remove(tree: Tree, holds: Sequence[Hold]) -> None:
    """Take the gadget away, with what a dead owner of it left. Raises Gone or OSError if the kernel keeps a part."""
    if isinstance(tree, MountedFfs):
        if holds:
            _quieten(tree)
    else:
        tree.unbind()  # ends every transfer, and waits until nothing is being copied any more
    for each in holds:
        each.end()
    tree.remove()


def _let_go(tree: Tree) -> None:
    """Every transfer ends, and nothing is being copied any more: unbinding waits for it.

    Of a gadget that is not ours the endpoints are disabled here, which has ended all transfers; only what the queue
    was copying then cannot be waited for, nor seen.
    """
    if isinstance(tree, MountedFfs):
        time.sleep(_COPIED_S)
    else:
        tree.unbind()


def _quieten(tree: MountedFfs) -> None:
    """Nothing that a dead owner reads is being copied any more. Until its memory goes its reads keep the files open."""
    try:
        fd = open_file(tree.mount_point / ENDPOINT_NAMES[-1])
    except OSError:
        return  # the kernel has closed the last of them, and begun anew
    try:
        with contextlib.closing(AioContext(1)) as aio, contextlib.suppress(OSError):
            Endpoint(ENDPOINT_NAMES[-1], fd, Command.PREAD, aio).halt()
        if not _passed(fd):
            _let_go(tree)
    finally:
        os.close(fd)


def _passed(fd: int) -> bool:
    """Has a read gone through f_fs's queue behind all others? Not if the endpoint is disabled: it never gets there."""
    with mmap.mmap(-1, mmap.PAGESIZE) as page, contextlib.closing(AioContext(1)) as aio:
        number = aio.submit(Command.PREAD, fd, ctypes.addressof(ctypes.c_char.from_buffer(page)), mmap.PAGESIZE)
        aio.cancel(number)
        poll = select.poll()
        poll.register(aio.eventfd, select.POLLIN)
        poll.poll(_PASSING_S * 1000)
        return any(result >= 0 or -result == errno.ECONNRESET for _, result in aio.completions())
