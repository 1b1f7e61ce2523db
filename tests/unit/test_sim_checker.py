"""What the simulator's checker allows and what it does not, on histories and disk errors made by hand.

Shows issue 7, item 2.
"""

from errno import EIO, ENOSPC

import pytest

from common.wire import Op
from tests.sim.checker import BLOCK, Checker, Written, content
from tests.sim.trouble import Failing, Trouble
from tests.sim.world import World


@pytest.fixture
def world() -> World:
    return World(0)


def _written(world: World, checker: Checker, version: int, began: float, ended: float) -> Written:
    world.now = 1000.0 + began
    written = checker.write_begins(1, 0, version)
    written.ended = 1000.0 + ended
    return written


def test_a_fua_write_promises_nothing_of_a_write_that_began_and_ended_meanwhile(world: World) -> None:
    checker = Checker(world)
    fua = _written(world, checker, 1, 1.0, 9.0)
    _written(world, checker, 2, 2.0, 3.0)
    _written(world, checker, 3, 4.0, 5.0)
    for version in (1, 2, 3):
        checker.fua_ended(1, 0, fua, content(1, 0, version))
    assert world.violation is None


def test_what_was_over_before_a_fua_write_began_must_not_be_left_after_it(world: World) -> None:
    checker = Checker(world)
    _written(world, checker, 1, 1.0, 2.0)
    fua = _written(world, checker, 2, 3.0, 4.0)
    checker.fua_ended(1, 0, fua, content(1, 0, 1))
    assert str(world.violation).startswith(
        "export 1 block 0: what a crash leaves after the FUA write of version 2 gave version 1"
    )


def test_a_read_may_not_give_what_was_overwritten_before_it_began(world: World) -> None:
    checker = Checker(world)
    _written(world, checker, 1, 1.0, 2.0)
    _written(world, checker, 2, 3.0, 4.0)
    checker.read_ended(1, 0, 1003.5, content(1, 0, 1))
    assert world.violation is None
    checker.read_ended(1, 0, 1004.5, content(1, 0, 1))
    assert str(world.violation).startswith("export 1 block 0: a read begun at 4.500000 gave version 1")


def test_a_write_that_failed_may_be_read_or_not_until_another_is_over(world: World) -> None:
    checker = Checker(world)
    _written(world, checker, 1, 1.0, 2.0)
    failed = _written(world, checker, 2, 3.0, 4.0)
    failed.failed = True
    for version in (1, 2):
        checker.read_ended(1, 0, 1005.0, content(1, 0, version))
    assert world.violation is None
    _written(world, checker, 3, 6.0, 7.0)
    checker.read_ended(1, 0, 1008.0, content(1, 0, 2))
    assert str(world.violation).startswith("export 1 block 0: a read begun at 8.000000 gave version 2")


@pytest.fixture
def trouble(world: World) -> Trouble:
    """Of a disk that has just failed to write its block 2, and after that an fdatasync."""
    world.now = 1010.0
    trouble = Trouble(world)
    trouble.fails(Failing((Op.WRITE,), ENOSPC, times=1))
    with pytest.raises(OSError, match="the disk fails"):
        trouble.strike(Op.WRITE, 2 * BLOCK, BLOCK)
    return trouble


def test_an_io_may_fail_with_what_its_disk_told_of_its_end_since_it_began_and_with_nothing_else(
    trouble: Trouble,
) -> None:
    asked = (Op.WRITE, False, 0, 3 * BLOCK, ENOSPC, 1009.0)
    assert trouble.may_fail(*asked)
    others = {0: Op.READ, 2: 3 * BLOCK, 3: 4 * BLOCK, 4: EIO, 5: 1011.0}
    for place, other in others.items():
        assert not trouble.may_fail(*(other if n == place else part for n, part in enumerate(asked))), place  # type: ignore[arg-type]


def test_after_a_failed_fdatasync_all_but_reads_must_fail_with_eio(trouble: Trouble) -> None:
    assert not trouble.must_fail(Op.FLUSH, 1011.0)
    trouble.fails(Failing((Op.FLUSH,), EIO, times=1))
    with pytest.raises(OSError, match="the disk fails"):
        trouble.strike(Op.FLUSH, 0, 0)
    for op in Op:
        assert (
            trouble.must_fail(op, 1011.0) == trouble.may_fail(op, False, 0, BLOCK, EIO, 1011.0) == (op is not Op.READ)
        )
        assert not trouble.must_fail(op, 1009.0), "it began before"
