"""The queue core: sequence numbers, replay, and commits that happen once."""

import pytest

from common.errors import WireError
from common.wire import Op
from gadget.ublk.core import Commit, QueueCore, parse_completions


def test_read_is_committed_with_its_bytes() -> None:
    core = QueueCore(4096, 16)
    taken = core.take(3, Op.READ, 16, 8)
    assert taken.message() == [1, Op.READ, 3, 2, 1, 0]
    assert core.complete(1, 0) == Commit(3, 4096)


def test_flush_is_committed_with_zero() -> None:
    core = QueueCore(4096, 16)
    core.take(3, Op.FLUSH, 0, 0)
    assert core.complete(1, 0) == Commit(3, 0)


def test_errno_reaches_the_block_layer_unchanged() -> None:
    core = QueueCore(512, 16)
    core.take(0, Op.WRITE, 0, 1)
    assert core.complete(1, 28) == Commit(0, -28)


@pytest.mark.parametrize(("status", "result"), [(1, -1), (4095, -4095), (4096, -5), (-1, -5)])
def test_what_is_no_errno_of_the_kernels_is_eio(status: int, result: int) -> None:
    """IS_ERR_VALUE: errnos end at MAX_ERRNO, 4095."""
    core = QueueCore(512, 16)
    core.take(0, Op.WRITE, 0, 1)
    assert core.complete(1, status) == Commit(0, result)


def test_an_answer_is_committed_once() -> None:
    core = QueueCore(512, 16)
    core.take(0, Op.WRITE, 0, 1)
    assert core.complete(1, 0) is not None
    assert core.complete(1, 0) is None
    assert core.unknown == 1


def test_a_reused_tag_is_another_request() -> None:
    core = QueueCore(512, 16)
    core.take(0, Op.WRITE, 0, 1)
    core.complete(1, 0)
    assert core.take(0, Op.READ, 0, 1).sequence == 2
    assert core.complete(1, 0) is None
    assert core.in_flight == 1


def test_replay_is_everything_unanswered_in_order() -> None:
    core = QueueCore(512, 16)
    for tag in (5, 2, 9):
        core.take(tag, Op.WRITE, tag, 1)
    core.complete(2, 0)
    assert [t.tag for t in core.outstanding()] == [5, 9]


def test_a_tag_in_flight_cannot_be_taken_again() -> None:
    core = QueueCore(512, 16)
    core.take(0, Op.WRITE, 0, 1)
    for tag in (0, 16, -1):
        with pytest.raises(WireError, match="tag"):
            core.take(tag, Op.READ, 0, 1)


def test_a_request_off_the_block_grid_is_refused() -> None:
    core = QueueCore(4096, 16)
    for start, sectors in ((1, 8), (8, 1)):
        with pytest.raises(WireError, match="off the grid"):
            core.take(0, Op.READ, start, sectors)


@pytest.mark.parametrize("body", [None, 5, [1], [[1]], [[1, "x"]], [[1, 2, 3]], {"a": 1}])
def test_malformed_completions_are_one_error(body: object) -> None:
    with pytest.raises(WireError):
        parse_completions(body)


def test_the_block_layers_flags_stay_on_the_gadget() -> None:
    """A v0 host refuses flags it does not know: ext4's first read is flagged META, and its mount failed with EINVAL."""
    taken = QueueCore(4096, 16).take(0, Op.READ, 0, 8)
    assert taken.message()[5] == 0
