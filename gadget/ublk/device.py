"""/dev/ublkcN: the queue of one ublk device. FETCH, requests, COMMIT; and what keeps it recoverable.

One `QueueDevice` per process, one hardware queue, one thread that opens, FETCHes, reads requests and commits.
Payload lies in an arena of the caller's, one slot of max_io_bytes for each tag (copy mode: the kernel has
copied a write's payload in before its request is seen, and copies a read's payload out when it is committed).
Who decides, and answers, is the caller.

The order of a start:   Control.add, set_params, QueueDevice(), fetch_all, Control.start
The order of recovery:  Control.start_user_recovery, QueueDevice(), fetch_all, Control.end_user_recovery
`start` and `end_user_recovery` are sent by a second thread of this process with a Control of its own, made
after fetch_all, while the first runs the loop: they wait for mutexes that others may hold across I/O which
only the loop ends. A second process will not do: another's END could find the FETCHes of one that has just
died.
"""

import contextlib
import ctypes
import errno
import mmap
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from common.errors import Gone, Illegal
from common.limits import MIN_QUEUE_DEPTH
from common.syscalls import syscall
from gadget.ublk.abi import IO_DESC, IO_SQE, UBLK_IO_RES_ABORT, UBLK_MAX_QUEUE_DEPTH, IoOp
from gadget.ublk.uring import IORING_OP_URING_CMD, Ring

Request = tuple[int, int, int, int, int]
"""(tag, op: BlockOp, start_sector and nr_sectors in 512-byte sectors, flags: IoFlag). A plain tuple: one per I/O."""

_CAP_SYS_ADMIN: Final = 21  # linux/capability.h
_CAPABILITY_VERSION_3: Final = 0x20080522
_KERNEL, _OURS, _ABORTED = range(3)  # who has a tag: ublk, until a request comes; we; nobody, it will not come back


class QueueDevice:
    """An open /dev/ublkcN. It opens once: whoever holds a copy of its fd blocks recovery for ever.

    So it is close-on-exec, nothing of it survives os.fork in the child (neither fds nor mappings), and it
    must never be sent to anybody. (A C fork without exec would keep it; Python's subprocess is safe.)

    Raises OSError: ENOENT no such device, or devtmpfs has not made its node yet; EBUSY somebody has it open
    (udev, for a moment, after ADD_DEV): ask again; EACCES; and as Ring. ValueError for a depth outside the
    limits.
    """

    def __init__(self, dev_id: int, depth: int) -> None:
        if not MIN_QUEUE_DEPTH <= depth <= UBLK_MAX_QUEUE_DEPTH:
            raise ValueError(f"queue depth {depth}: not in {MIN_QUEUE_DEPTH}..{UBLK_MAX_QUEUE_DEPTH}")
        self.dev_id, self.depth = dev_id, depth
        self._owner = bytearray(depth)
        self._address: list[int] = []
        self._descriptors: mmap.mmap | None = None
        self._fd = os.open(f"/dev/ublkc{dev_id}", os.O_RDWR | os.O_CLOEXEC)
        try:
            self._ring = Ring(depth)  # each tag has at most one SQE prepared and one CQE coming: neither ring overflows
        except BaseException:
            os.close(self._fd)
            raise
        _open.add(self)

    @property
    def eventfd(self) -> int:
        """Readable when `requests` has something. Level-triggered poll; `requests` resets it."""
        return self._ring.eventfd

    @property
    def in_flight(self) -> int:
        """Requests seen and not committed."""
        return self._owner.count(_OURS)

    @property
    def stopped(self) -> bool:
        """A tag was aborted (ENODEV): somebody sent STOP_DEV or DEL_DEV. No request comes any more: close and exit."""
        return _ABORTED in self._owner

    def fetch_all(self, address_of: Callable[[int], int]) -> None:
        """Give the kernel every tag, with its buffer at `address_of(tag)`, and map the request descriptors.

        All FETCHes go in one io_uring_enter, which a kill cannot divide: a queue fetched in part never frees
        its ring and can only be stopped. The descriptors are mapped after that: a successor of one that died
        before its FETCHes takes over without START_USER_RECOVERY (EINVAL), and the kernel would hold it to
        the dead one's address space. CAP_SYS_ADMIN is lowered meanwhile (see without_sys_admin), so START_DEV
        will not scan for partitions.

        Raises OSError: EAGAIN the kernel did not take all; EINVAL or EBUSY it refuses one (fetched already;
        not recovered). Exit then: a half-made queue has no other way out.
        """
        self._address = [address_of(tag) for tag in range(self.depth)]
        for tag in range(self.depth):
            self._prepare(IoOp.FETCH_REQ, tag, 0)
        with without_sys_admin():
            self._ring.submit()
        for tag, result, _ in self._ring.completions():  # no request can be there yet: this is a refusal
            raise OSError(-result, f"ublk FETCH of device {self.dev_id} tag {tag}: {os.strerror(-result)}")
        size_bytes = -(-self.depth * IO_DESC.size // mmap.PAGESIZE) * mmap.PAGESIZE
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        self._descriptors = mmap.mmap(self._fd, size_bytes, flags=flags, prot=mmap.PROT_READ)
        self._descriptors.madvise(mmap.MADV_DONTFORK)

    def requests(self, reset: bool = True) -> Iterator[Request]:
        """Requests that have come, each once; its tag is ours until `commit`. Never blocks; may be empty.

        `reset` as Ring.completions.

        Aborted tags are not yielded, see `stopped`. Raises OSError with the errno the driver gave a COMMIT of
        ours (EINVAL, EBUSY: a bug), OSError(EOVERFLOW) as Ring.
        """
        descriptors = self._descriptors
        if descriptors is None:
            raise Illegal(f"ublk device {self.dev_id}: requests before fetch_all")
        owner, size, unpack = self._owner, IO_DESC.size, IO_DESC.unpack_from
        for tag, result, _ in self._ring.completions(reset):
            if result == UBLK_IO_RES_ABORT:
                owner[tag] = _ABORTED
                continue
            if result < 0:
                raise OSError(-result, f"ublk device {self.dev_id} tag {tag}: {os.strerror(-result)}")
            owner[tag] = _OURS
            op_flags, nr_sectors, start_sector, _ = unpack(descriptors, tag * size)
            yield tag, op_flags & 0xFF, start_sector, nr_sectors, op_flags & ~0xFF

    def commit(self, tag: int, result: int) -> None:
        """Answer a request and give its tag back, at the next `submit`.

        `result`: bytes done for a read or write (fewer than asked: the rest is asked again; a read of 0 is
        EIO; a write of 0 would be asked for ever), 0 for other ops, or -errno for the block layer (-EIO,
        -ENOSPC, -EOPNOTSUPP, -ETIMEDOUT, ... others become EIO). Raises Illegal if the tag is not ours.
        """
        if not 0 <= tag < self.depth or self._owner[tag] != _OURS:
            raise Illegal(f"ublk device {self.dev_id}: commit of tag {tag}, which is not ours")
        self._prepare(IoOp.COMMIT_AND_FETCH_REQ, tag, result)
        self._owner[tag] = _KERNEL

    def submit(self) -> None:
        """Hand the commits gathered so far to the kernel, in one system call. OSError as Ring.submit: then exit."""
        self._ring.submit()

    def close(self) -> None:
        """Let go. What is in flight waits for a successor, as after a kill. Twice is harmless."""
        _open.discard(self)
        if self._fd < 0:
            return
        if self._descriptors is not None:
            self._descriptors.close()  # and the duplicate of the fd that mmap keeps
        self._ring.close()
        os.close(self._fd)
        self._fd = -1

    def _prepare(self, op: IoOp, tag: int, result: int) -> None:
        if self._fd < 0:
            raise Gone(f"ublk device {self.dev_id} is closed")
        address = self._address[tag]
        self._ring.prepare(
            IO_SQE, IORING_OP_URING_CMD, 0, 0, self._fd, op, 0, 0, 0, 0, tag, 0, 0, 0, 0, tag, result, address
        )


_open: "weakref.WeakSet[QueueDevice]" = weakref.WeakSet()


def _close_in_child() -> None:
    for device in list(_open):
        device.close()


os.register_at_fork(after_in_child=_close_in_child)


@contextlib.contextmanager
def without_sys_admin() -> Iterator[None]:
    """Lower the calling thread's effective CAP_SYS_ADMIN, and only this thread's, for the time of a `with`.

    The driver looks at it when the last FETCH arrives (ublk_mark_io_ready): a server without it is not
    trusted, and START_DEV does not scan its disk for partitions. A scan reads with the device's mutex held;
    were the link down or the server to die then, START, STOP, DEL and recovery would hang for good. Raised
    again at once, so that threads made later, for control commands, have it. Raises OSError(EPERM) only if it
    was taken from the permitted set meanwhile.
    """
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)  # pid 0: the calling thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; low words, then high words
    addresses = ctypes.addressof(header), ctypes.addressof(sets)
    syscall("capget", *addresses)
    before = sets[0]
    sets[0] = before & ~(1 << _CAP_SYS_ADMIN)
    syscall("capset", *addresses)
    try:
        yield
    finally:
        sets[0] = before
        syscall("capset", *addresses)


def settle_queue_limits(dev_id: int, depth: int, sys_block: Path = Path("/sys/block")) -> None:
    """Set scheduler `none` and nr_requests = depth - 1, once, right after the first START_DEV.

    They survive recovery. Why: the kernel notices a dead server by the cancellation of a FETCH that waits for a
    request. With every tag in flight there is none, and only the block layer's timeout (30 s) tells. With one
    request fewer than tags one FETCH always waits. `none` comes first: a scheduler has a number of its own.

    Each store freezes the queue and waits for I/O in flight, for as long as that takes: run this in a
    disposable process which does not hold the ublkc fd, before users know the device. A value that is already
    right is not stored again. Raises OSError: ENOENT the disk is gone, EACCES, EINVAL a depth below 5 (the
    block layer allows no fewer than 4).
    """
    if depth < MIN_QUEUE_DEPTH:
        raise OSError(errno.EINVAL, f"queue depth {depth}: below {MIN_QUEUE_DEPTH} no FETCH can be kept idle")
    queue = sys_block / f"ublkb{dev_id}" / "queue"
    wanted = (("scheduler", "none", "[none]"), ("nr_requests", str(depth - 1), str(depth - 1)))
    for name, value, shown in wanted:
        file = queue / name
        current = file.read_text().split()
        if shown in current or current == [value]:
            continue
        fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)  # not "w": the driver wants one write, and no O_TRUNC or O_CREAT
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
