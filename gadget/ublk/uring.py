"""io_uring from Python: one ring, by raw system calls, with an eventfd so that it can live in a poll loop.

Only what ublk needs: submit prepared SQEs (64 or 128 bytes) in batches and read CQEs, without one object made
by ctypes for each I/O. What an SQE means is the caller's business. Used by `control` (waits for each command)
and by `device` (polls). One thread submits and reads; a `Ring` must not be shared between threads that run at
the same time.

Memory ordering. Python has no barriers, and needs none here: without SQPOLL the kernel reads SQEs and tail in
io_uring_enter(2), in the thread that wrote them. CQEs of ublk's queue commands are posted by task work of
this same thread; CQEs of control commands come from a worker thread, but are read only after the enter that
waited for them. Do not read completions in a busy loop without a system call in between.
"""

import contextlib
import ctypes
import errno
import mmap
import os
import struct
import time
from collections.abc import Iterator
from typing import Final

from common.syscalls import bound, failure, syscall

# linux/io_uring.h
IORING_OP_NOP: Final = 0
IORING_OP_URING_CMD: Final = 46
IORING_SETUP_CQSIZE: Final = 1 << 3
IORING_SETUP_SUBMIT_ALL: Final = 1 << 7
IORING_SETUP_SQE128: Final = 1 << 10
IORING_OFF_SQ_RING: Final = 0
IORING_OFF_SQES: Final = 0x10000000
IORING_SQ_CQ_OVERFLOW: Final = 1 << 1
IORING_ENTER_GETEVENTS: Final = 1 << 0
IORING_ENTER_EXT_ARG: Final = 1 << 3
IORING_FEAT_SINGLE_MMAP: Final = 1 << 0
IORING_FEAT_NODROP: Final = 1 << 1
IORING_FEAT_EXT_ARG: Final = 1 << 8
IORING_REGISTER_EVENTFD: Final = 4

_NEEDED_FEATURES: Final = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_EXT_ARG  # all there since 5.11
_WRAP: Final = 0xFFFFFFFF  # ring indices are free-running u32
_CQE: Final = struct.Struct("<QiI")  # struct io_uring_cqe: user_data, res, flags

# struct io_uring_sqe up to its command area, 48 bytes: opcode, flags, ioprio, fd, cmd_op, __pad1, addr, len,
# uring_cmd_flags, user_data, buf_index, personality, file_index
SQE_HEAD: Final = "<BBHiIIQIIQHHI"

_io_uring_enter: Final = bound("io_uring_enter", 6)


class io_sqring_offsets(ctypes.Structure):
    """struct io_sqring_offsets."""

    _fields_ = (
        ("head", ctypes.c_uint32),
        ("tail", ctypes.c_uint32),
        ("ring_mask", ctypes.c_uint32),
        ("ring_entries", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("dropped", ctypes.c_uint32),
        ("array", ctypes.c_uint32),
        ("resv1", ctypes.c_uint32),
        ("user_addr", ctypes.c_uint64),
    )
    head: int
    tail: int
    ring_mask: int
    flags: int
    array: int


class io_cqring_offsets(ctypes.Structure):
    """struct io_cqring_offsets."""

    _fields_ = (
        ("head", ctypes.c_uint32),
        ("tail", ctypes.c_uint32),
        ("ring_mask", ctypes.c_uint32),
        ("ring_entries", ctypes.c_uint32),
        ("overflow", ctypes.c_uint32),
        ("cqes", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("resv1", ctypes.c_uint32),
        ("user_addr", ctypes.c_uint64),
    )
    head: int
    tail: int
    ring_mask: int
    overflow: int
    cqes: int


class io_uring_params(ctypes.Structure):
    """struct io_uring_params."""

    _fields_ = (
        ("sq_entries", ctypes.c_uint32),
        ("cq_entries", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("sq_thread_cpu", ctypes.c_uint32),
        ("sq_thread_idle", ctypes.c_uint32),
        ("features", ctypes.c_uint32),
        ("wq_fd", ctypes.c_uint32),
        ("resv", ctypes.c_uint32 * 3),
        ("sq_off", io_sqring_offsets),
        ("cq_off", io_cqring_offsets),
    )
    sq_entries: int
    cq_entries: int
    flags: int
    features: int
    sq_off: io_sqring_offsets
    cq_off: io_cqring_offsets


class io_uring_getevents_arg(ctypes.Structure):
    """struct io_uring_getevents_arg (the last u32 is min_wait_usec on newer kernels; zero is right for both)."""

    _fields_ = (
        ("sigmask", ctypes.c_uint64),
        ("sigmask_sz", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("ts", ctypes.c_uint64),
    )


class _Timespec(ctypes.Structure):
    """struct __kernel_timespec."""

    _fields_ = (("tv_sec", ctypes.c_int64), ("tv_nsec", ctypes.c_int64))


class Ring:
    """One io_uring.

    `entries`: SQEs that can be prepared before a submit (rounded up to a power of two). `wide`: 128-byte SQEs
    (IORING_SETUP_SQE128), which ublk's control commands need. `cq_entries`: default twice `entries`;
    completions beyond are kept by the kernel and fetched by `completions`, but slowly, so size it for all
    that can be outstanding.

    Raises OSError: ENOSYS or EPERM where io_uring is absent or forbidden (kernel.io_uring_disabled), ENOMEM,
    EMFILE, ENOTSUP on a kernel older than 5.11.

    `fd` is the ring, `eventfd` becomes readable when completions arrive (non-blocking; `completions` resets
    it).
    """

    def __init__(self, entries: int, *, wide: bool = False, cq_entries: int | None = None) -> None:
        params = io_uring_params()
        # SUBMIT_ALL: one bad SQE completes with its own error and does not hold back those behind it.
        params.flags = IORING_SETUP_SUBMIT_ALL | (IORING_SETUP_SQE128 if wide else 0)
        if cq_entries is not None:
            params.flags |= IORING_SETUP_CQSIZE
            params.cq_entries = cq_entries
        self.sqe_bytes = 128 if wide else 64
        self.fd = syscall("io_uring_setup", entries, ctypes.addressof(params))  # the kernel makes it O_CLOEXEC
        self.eventfd = -1
        self._maps: list[mmap.mmap] = []
        try:
            if params.features & _NEEDED_FEATURES != _NEEDED_FEATURES:
                raise OSError(errno.ENOTSUP, f"io_uring: kernel too old, features {params.features:#x}")
            self._map(params)
            self.eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._register_eventfd()
        except BaseException:
            self.close()
            raise

    def _map(self, params: io_uring_params) -> None:
        sq, cq = params.sq_off, params.cq_off
        ring_bytes = max(sq.array + params.sq_entries * 4, cq.cqes + params.cq_entries * _CQE.size)
        self._ring = self._map_one(ring_bytes, IORING_OFF_SQ_RING)
        self._sqes = self._map_one(params.sq_entries * self.sqe_bytes, IORING_OFF_SQES)
        words = self._words = memoryview(self._ring)[: ring_bytes & ~3].cast("I")
        self._sq_head, self._sq_tail, self._sq_flags = sq.head // 4, sq.tail // 4, sq.flags // 4
        self._cq_head, self._cq_tail, self._cq_overflow = cq.head // 4, cq.tail // 4, cq.overflow // 4
        self._sq_mask, self._cq_mask = words[sq.ring_mask // 4], words[cq.ring_mask // 4]
        self._cqes = cq.cqes
        self._tail = words[self._sq_tail]  # ours; published by submit
        self.entries, self.cq_entries = params.sq_entries, params.cq_entries
        for index in range(params.sq_entries):  # slot i always holds SQE i: the indirection is not used
            words[sq.array // 4 + index] = index

    def _map_one(self, size_bytes: int, offset: int) -> mmap.mmap:
        mapping = mmap.mmap(
            self.fd,
            size_bytes,
            flags=mmap.MAP_SHARED | mmap.MAP_POPULATE,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
            offset=offset,
        )
        # A forked child's copy of the mapping would keep the ring, and all that its requests hold, alive.
        mapping.madvise(mmap.MADV_DONTFORK)
        self._maps.append(mapping)
        return mapping

    def _register_eventfd(self) -> None:
        fds = (ctypes.c_int32 * 1)(self.eventfd)
        syscall("io_uring_register", self.fd, IORING_REGISTER_EVENTFD, ctypes.addressof(fds), 1)

    @property
    def prepared(self) -> int:
        """SQEs prepared and not yet taken by the kernel."""
        return (self._tail - self._words[self._sq_head]) & _WRAP

    def prepare(self, layout: struct.Struct, *fields: int) -> None:
        """Write one SQE (`layout` covers all of its `sqe_bytes`). The kernel sees it at the next `submit` or `wait`.

        Raises BlockingIOError (EAGAIN) if `entries` are prepared already: submit first.
        """
        if (self._tail - self._words[self._sq_head]) & _WRAP >= self.entries:
            raise BlockingIOError(errno.EAGAIN, f"io_uring: all {self.entries} SQEs are prepared and not submitted")
        layout.pack_into(self._sqes, (self._tail & self._sq_mask) * self.sqe_bytes, *fields)
        self._tail = (self._tail + 1) & _WRAP

    def submit(self) -> int:
        """Hand all prepared SQEs to the kernel; returns how many. Does not wait for completions.

        Raises OSError: EAGAIN if the kernel took only some (out of memory), EBUSY while completions overflow
        and must be read first. The rest stays prepared; a caller for whom half a batch is as bad as none
        exits.
        """
        words, head_at, tail = self._words, self._sq_head, self._tail
        words[self._sq_tail] = tail  # the kernel sees them from now on
        count = (tail - words[head_at]) & _WRAP
        if count:
            self._enter(count, 0, 0, 0, 0)
            left = (tail - words[head_at]) & _WRAP
            if left:
                raise OSError(errno.EAGAIN, f"io_uring: the kernel took {count - left} of {count} SQEs")
        return count

    def wait(self, count: int = 1, timeout_s: float | None = None) -> None:
        """Submit what is prepared and wait until `count` completions can be read.

        Raises TimeoutError (ETIMEDOUT) when `timeout_s` is over; the commands go on. Signals do not end it
        (their handlers run, and may raise). OSError as `submit`.
        """
        self.submit()  # apart from waiting: an enter that did both hides an interrupted wait behind its submit count
        timespec, argument = _Timespec(), io_uring_getevents_arg()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        flags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG
        while (self._words[self._cq_tail] - self._words[self._cq_head]) & _WRAP < min(count, self.cq_entries):
            if deadline is not None:
                left_s = max(0.0, deadline - time.monotonic())
                timespec.tv_sec, timespec.tv_nsec = int(left_s), int(left_s % 1 * 1e9)
                argument.ts = ctypes.addressof(timespec)
            try:
                self._enter(0, count, flags, ctypes.addressof(argument), ctypes.sizeof(argument))
            except InterruptedError:
                continue  # as PEP 475: the signal's handler has run
            except OSError as error:
                if error.errno == errno.ETIME:
                    raise TimeoutError(errno.ETIMEDOUT, f"io_uring: no completion in {timeout_s} s") from None
                raise

    def completions(self, reset: bool = True) -> Iterator[tuple[int, int, int]]:
        """All completions that are there: (user_data, res, flags). Resets `eventfd` first, so that none is missed.

        Without `reset` for who is told of each addition to `eventfd` and does not mind what is in it.

        Each is consumed as it is yielded. Raises OSError(EOVERFLOW) if the kernel had to drop one: the ring's
        state is then unknown, and its owner exits.
        """
        if reset:
            with contextlib.suppress(BlockingIOError):  # nothing signalled: we were called for another reason
                os.eventfd_read(self.eventfd)
        words, ring, cqes, mask, unpack = self._words, self._ring, self._cqes, self._cq_mask, _CQE.unpack_from
        head_at, tail_at = self._cq_head, self._cq_tail
        while True:
            head, tail = words[head_at], words[tail_at]
            while head != tail:
                completion = unpack(ring, cqes + (head & mask) * _CQE.size)
                head = (head + 1) & _WRAP
                words[head_at] = head
                yield completion
            if not words[self._sq_flags] & IORING_SQ_CQ_OVERFLOW:
                break
            self._enter(0, 0, IORING_ENTER_GETEVENTS, 0, 0)  # brings in what the kernel kept back
        if words[self._cq_overflow]:
            raise OSError(errno.EOVERFLOW, f"io_uring: the kernel dropped {words[self._cq_overflow]} completions")

    def close(self) -> None:
        """Let go of everything. The kernel cancels what is outstanding. Twice is harmless."""
        if hasattr(self, "_words"):
            self._words.release()
        for mapping in self._maps:
            mapping.close()
        self._maps.clear()
        for fd in (self.eventfd, self.fd):
            if fd >= 0:
                os.close(fd)
        self.eventfd = self.fd = -1

    def _enter(self, to_submit: int, min_complete: int, flags: int, argument: int, argument_bytes: int) -> int:
        result = _io_uring_enter(self.fd, to_submit, min_complete, flags, argument, argument_bytes)
        if result < 0:
            raise failure("io_uring_enter")
        return result
