"""The io_uring binding against the kernel we run on, with NOPs. Skipped, with the reason, where io_uring is
forbidden.
"""

import errno
import os
import select
import struct
import time
from collections.abc import Iterator

import pytest

from gadget.ublk.uring import IORING_OP_NOP, SQE_HEAD, Ring

SQE64 = struct.Struct(SQE_HEAD + "16x")
SQE128 = struct.Struct(SQE_HEAD + "80x")


@pytest.fixture
def ring() -> Iterator[Ring]:
    try:
        ring = Ring(4)
    except OSError as error:
        pytest.skip(f"no io_uring here: {error}")
    yield ring
    ring.close()


def nop(ring: Ring, user_data: int) -> None:
    layout = SQE64 if ring.sqe_bytes == 64 else SQE128
    ring.prepare(layout, IORING_OP_NOP, 0, 0, -1, 0, 0, 0, 0, 0, user_data, 0, 0, 0)


def test_layouts_have_the_size_of_an_sqe() -> None:
    assert struct.calcsize(SQE_HEAD) == 48
    assert (SQE64.size, SQE128.size) == (64, 128)


def test_completions_carry_user_data_in_order_of_submission(ring: Ring) -> None:
    for number in (7, 1 << 63, 9):
        nop(ring, number)
    assert ring.prepared == 3
    assert ring.submit() == 3
    assert ring.prepared == 0
    assert [(data, res) for data, res, _ in ring.completions()] == [(7, 0), (1 << 63, 0), (9, 0)]
    assert list(ring.completions()) == []


def test_indices_wrap_around_many_times(ring: Ring) -> None:
    for number in range(1000):
        nop(ring, number)
        ring.submit()
        assert [data for data, _, _ in ring.completions()] == [number]


def test_submit_of_nothing_is_nothing(ring: Ring) -> None:
    assert ring.submit() == 0


def test_a_full_submission_queue_is_told_eagain_and_loses_nothing(ring: Ring) -> None:
    for number in range(ring.entries):
        nop(ring, number)
    with pytest.raises(BlockingIOError, match="io_uring: all 4 SQEs") as caught:
        nop(ring, 99)
    assert caught.value.errno == errno.EAGAIN
    assert ring.submit() == 4
    assert [data for data, _, _ in ring.completions()] == [0, 1, 2, 3]


def test_completions_beyond_the_completion_queue_are_not_lost(ring: Ring) -> None:
    assert ring.cq_entries == 8
    for number in range(12):
        nop(ring, number)
        ring.submit()
    assert [data for data, _, _ in ring.completions()] == list(range(12))


def test_each_completion_is_consumed_as_it_is_yielded(ring: Ring) -> None:
    nop(ring, 1)
    nop(ring, 2)
    ring.submit()
    assert next(ring.completions())[0] == 1
    assert next(ring.completions())[0] == 2


def test_eventfd_is_readable_until_completions_are_read(ring: Ring) -> None:
    poll = select.poll()
    poll.register(ring.eventfd, select.POLLIN)
    assert poll.poll(0) == []
    nop(ring, 1)
    ring.submit()
    assert poll.poll(0) == [(ring.eventfd, select.POLLIN)]
    list(ring.completions())
    assert poll.poll(0) == []


def test_wait_without_a_completion_ends_at_its_timeout(ring: Ring) -> None:
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match=r"io_uring: no completion in 0\.02 s") as caught:
        ring.wait(timeout_s=0.02)
    assert caught.value.errno == errno.ETIMEDOUT
    assert 0.015 < time.monotonic() - begun < 5


def test_wait_submits_what_is_prepared(ring: Ring) -> None:
    nop(ring, 5)
    ring.wait(timeout_s=5)
    assert [data for data, _, _ in ring.completions()] == [5]


def test_an_unknown_operation_completes_with_einval_and_does_not_hold_back_the_next(ring: Ring) -> None:
    ring.prepare(SQE64, 255, 0, 0, -1, 0, 0, 0, 0, 0, 1, 0, 0, 0)
    nop(ring, 2)
    assert ring.submit() == 2
    assert {data: res for data, res, _ in ring.completions()} == {1: -errno.EINVAL, 2: 0}


@pytest.mark.usefixtures("ring")
def test_wide_sqes_are_128_bytes() -> None:
    ring = Ring(2, wide=True)
    try:
        nop(ring, 1)
        nop(ring, 2)
        ring.submit()
        assert [(data, res) for data, res, _ in ring.completions()] == [(1, 0), (2, 0)]
    finally:
        ring.close()


def test_close_leaves_no_descriptor_and_twice_is_harmless() -> None:
    before = set(os.listdir("/proc/self/fd"))
    try:
        ring = Ring(4)
    except OSError as error:
        pytest.skip(f"no io_uring here: {error}")
    ring.close()
    ring.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_bad_size_is_told_einval() -> None:
    with pytest.raises(OSError, match="io_uring_setup: ") as caught:
        Ring(1 << 20)
    assert caught.value.errno in (errno.EINVAL, errno.EPERM, errno.ENOSYS)
