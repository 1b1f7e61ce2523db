"""Watchdog, spawner and twin in the simulator: what waits while there is no watchdog, and what a new one leaves be."""

from collections.abc import Iterator

import pytest

from tests.sim.processes import Process
from tests.sim.run import Run, substituted
from tests.sim.setting import Setting
from tests.sim.supervision import OWN, SIDES, Supervision

ROLES = {"gadget": ("usb", "session", "queue.000000a1", "queue.000000b2"), "host": ("usb", "session", "source.a1")}


@pytest.fixture
def run() -> Iterator[Run]:
    run = Run(3, setting=Setting(watchdogs=True))
    with substituted(run):
        run._first_roles()
        yield run
        assert run.world.violation is None
        run._end()


def _supervision(run: Run) -> Supervision:
    assert run.supervision is not None
    return run.supervision


def _until_all_is_well(run: Run) -> None:
    supervision = _supervision(run)
    wanted = [(side, role) for side in SIDES for role in ROLES[side]]
    run.world.run(lambda: all(supervision.holder(*key) for key in wanted) and not supervision.amiss(), 100.0)
    assert supervision.amiss() == ""


def _there(run: Run, side: str, role: str) -> Process:
    process = _supervision(run).holder(side, role)
    assert process is not None
    return process


def _passes(run: Run, seconds: float) -> None:
    run.world.run(lambda: False, seconds)


@pytest.mark.parametrize("side", SIDES)
def test_while_no_watchdog_lives_nothing_is_respawned_and_a_new_one_restarts_nothing_healthy(
    run: Run, side: str
) -> None:
    _until_all_is_well(run)
    others = {role: _there(run, side, role) for role in ROLES[side] if role != "usb"}
    spawner, usb = _there(run, side, "spawner"), _there(run, side, "usb")
    spawner.stop()  # there will be no new watchdog
    _there(run, side, "watchdog").finish("killed")
    usb.finish("killed")
    _passes(run, 7.0)
    assert [p.role for p in _supervision(run).everyone if p.side == side and p.alive] and usb.dead
    assert _supervision(run).holder(side, "usb") is None
    spawner.go_on()
    _until_all_is_well(run)
    assert _there(run, side, "usb") is not usb
    assert {role: _there(run, side, role) for role in others} == others


@pytest.mark.parametrize("dies", [("watchdog",), ("spawner",), ("twin",), ("spawner", "twin"), OWN])
@pytest.mark.parametrize("side", SIDES)
def test_whoever_of_the_supervision_dies_all_three_are_there_again_and_no_role_is_another(
    run: Run, side: str, dies: tuple[str, ...]
) -> None:
    _until_all_is_well(run)
    roles = {role: _there(run, side, role) for role in ROLES[side]}
    for role in dies:
        run.processes[side, role].finish("killed")
    _passes(run, 0.1)
    _until_all_is_well(run)
    assert {role: _there(run, side, role) for role in ROLES[side]} == roles


def test_a_frozen_watchdog_is_replaced_though_the_spawner_that_forked_it_died_before_it_had_its_name(run: Run) -> None:
    """Its twin forks another, which finds the name taken and ends: then the one that is there is the one to watch."""
    supervision = _supervision(run)

    def watchdogs() -> list[Process]:
        return [p for p in supervision.everyone if p.alive and (p.side, p.role) == ("gadget", "watchdog")]

    run.world.run(lambda: bool(watchdogs()), 10.0)
    (first,) = watchdogs()
    first.stop()
    _there(run, "gadget", "spawner").finish("killed")
    run.world.run(lambda: len(watchdogs()) == 2, 10.0)
    second = watchdogs()[1]
    second.stop()
    first.go_on()
    run.world.run(lambda: supervision.holder("gadget", "watchdog") is first, 1.0)
    second.go_on()
    _until_all_is_well(run)
    assert run.world.counts["exit watchdog Gone"] == 1, "the second"
    first.stop()
    run.world.run(lambda: first.dead, 60.0)
    assert first.dead, "nobody has found it silent"
    _until_all_is_well(run)
    assert _there(run, "gadget", "watchdog") is not first
