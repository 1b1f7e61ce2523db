"""What the simulator's checker allows and what it does not, on histories made by hand."""

import pytest

from tests.sim.checker import Checker, Written, content
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
