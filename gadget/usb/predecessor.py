"""What a dead predecessor left in the kernel ends here, before its successor does anything with the endpoints.

Its transfers outlive it, because somebody holds its memory (gadget.usb.mm_hold says why). They end with that process,
which is safe as soon as no byte that the host has sent is being copied: the endpoint is halted, so nothing more
arrives; then a read of ours goes through f_fs's one ordered queue behind everything that had arrived.
"""

import contextlib
import ctypes
import errno
import mmap
import select
from collections.abc import Sequence
from typing import Final

from gadget.usb.aio import AioContext, Command
from gadget.usb.configfs import GadgetTree
from gadget.usb.endpoint import Endpoint
from gadget.usb.kept import Peer
from gadget.usb.mm_hold import Hold

_PASSING_S: Final = 5.0  # f_fs's queue only copies: longer is a kernel in trouble, and unbinding says so


def end(holds: Sequence[Hold], tree: GadgetTree, bulk_out: Endpoint, peer: Peer) -> bool:
    """End the predecessor's transfers. False if that took an unbinding: for v0, or because the link is down.

    Unbinding ends them as well, and waits for the queue. A peer that is NONE was never read from.
    """
    if peer is Peer.V1:
        with contextlib.suppress(OSError):  # refused (dwc3 does while reads are queued): then little is left to chance
            bulk_out.halt()
    stays = peer is Peer.NONE or (peer is Peer.V1 and _passed(bulk_out.fd))
    if not stays:
        tree.unbind()
    for hold in holds:
        hold.end()
    return stays


def remove(tree: GadgetTree, holds: Sequence[Hold]) -> None:
    """Take the gadget away, with what a dead owner of it left. Raises Gone or OSError if the kernel keeps a part."""
    tree.unbind()  # ends every transfer, and waits until nothing is being copied any more
    for each in holds:
        each.end()
    tree.remove()


def _passed(fd: int) -> bool:
    """Has a read gone through f_fs's queue behind all others? Not if the endpoint is disabled: it never gets there."""
    with mmap.mmap(-1, mmap.PAGESIZE) as page, contextlib.closing(AioContext(1)) as aio:
        number = aio.submit(Command.PREAD, fd, ctypes.addressof(ctypes.c_char.from_buffer(page)), mmap.PAGESIZE)
        aio.cancel(number)
        poll = select.poll()
        poll.register(aio.eventfd, select.POLLIN)
        poll.poll(_PASSING_S * 1000)
        return any(result >= 0 or -result == errno.ECONNRESET for _, result in aio.completions())
