"""A fixed set of seeds, what they drive, and that the simulator can fail: `make sim` runs others.

Shows issue 3, item 10; issue 7, items 1 and 3.
"""

import importlib
import sys
from collections import Counter
from collections.abc import Iterable
from enum import Enum
from functools import cache
from itertools import product
from types import SimpleNamespace

import pytest

from gadget.usb.link import TABLE as LINK_TABLE
from host.session.core import TABLE as SESSION_TABLE
from tests.sim.campaign import Plan, outcomes
from tests.sim.mutations import MUTATIONS, found_at, writes_done_at_once
from tests.sim.mutations_below import Mutation
from tests.sim.run import FAULTS, Run, substituted
from tests.sim.seeds import KEPT, Kept
from tests.sim.setting import PLAIN, Setting, drawn, said
from tests.sim.transitions import (
    LINK_NEVER,
    LINK_NOT_MODELLED,
    LINK_SELDOM,
    SESSION_NOT_MODELLED,
    SESSION_SELDOM,
    Reasons,
)
from tests.sim.world import Violation

SEEDS = range(120)
DISK_SEEDS = range(30)
WATCHDOG_SEEDS = range(40)
OTHERS_SEEDS = range(30)
GROUPS = 6
MUTATION_SEEDS = range(200, 400)


@cache
def counts_of(group: int) -> Counter[str]:
    counts: Counter[str] = Counter()
    for seed in SEEDS[group::GROUPS]:
        counts += _counts(seed)
    return counts


def _counts(seed: int, faults: int = FAULTS, setting: Setting = PLAIN) -> Counter[str]:
    run = Run(seed, faults=faults, setting=setting)
    try:
        run.execute()
    except Violation as violation:
        pytest.fail(
            f"seed {seed}, step {run.world.steps}: {violation}\n{run.world.tail()}\n"
            f"again: make sim SEED={seed} N=1 WITH={setting} FAULTS={faults}"
        )
    return run.world.counts


@pytest.mark.timeout(120)
@pytest.mark.parametrize("group", range(GROUPS))
def test_whatever_dies_whenever_every_request_ends_well_with_the_right_bytes(group: int) -> None:
    counts = counts_of(group)
    assert sum(n for name, n in counts.items() if name.startswith("fault ")) == FAULTS * len(SEEDS[group::GROUPS])


@pytest.mark.timeout(120)
def test_what_a_failing_disk_tells_is_what_its_user_sees_and_nothing_else_fails() -> None:
    counts = sum((_counts(seed, setting=Setting(disks=True)) for seed in DISK_SEEDS), Counter[str]())
    for error in ("READ EIO", "WRITE EIO", "WRITE ENOSPC", "WRITE_ZEROES EIO", "WRITE_ZEROES ENOSPC", "DISCARD EIO"):
        assert counts[f"source failed {error}"], f"no seed had a {error}"
    assert counts["source failed FLUSH EIO"] and counts["source short READ"] and counts["source short WRITE"]
    for op in ("READ", "WRITE", "WRITE_ZEROES", "DISCARD", "FLUSH"):
        assert counts[f"bio {op} failed as its disk did"]


@pytest.mark.timeout(120)
def test_whoever_of_the_supervision_dies_roles_are_watched_and_not_restarted_and_down_leaves_nothing() -> None:
    counts = sum((_counts(seed, setting=Setting(watchdogs=True)) for seed in WATCHDOG_SEEDS), Counter[str]())
    for side in ("gadget", "host"):
        assert all(counts[f"end of {side} {role}"] for role in ("watchdog", "spawner", "twin"))
        assert counts[f"{side} started again"]
    assert counts["spawner executed by the watchdog"] and counts["fault stop_for_good"] and counts["jobs"]
    assert counts["sent SIGKILL"], "nothing silent was ended"


@pytest.mark.timeout(120)
def test_a_host_that_comes_back_with_another_disk_gets_nothing_until_it_has_the_first_one_again() -> None:
    counts = sum((_counts(seed, setting=Setting(others=True)) for seed in OTHERS_SEEDS), Counter[str]())
    assert counts["fault another_disk"] > len(OTHERS_SEEDS)
    assert counts["another disk was announced"], "it was never there long enough"


def test_a_seed_draws_its_setting_in_a_stream_of_its_own_and_it_can_be_said() -> None:
    settings = [drawn(seed) for seed in range(64)]
    assert set(settings) == {Setting(*some) for some in product((False, True), repeat=3)}
    assert [said(str(setting)) for setting in settings] == settings
    with pytest.raises(TypeError, match="watchdog_ear"):
        said("disks,watchdog_ear")


@pytest.mark.parametrize("kept", KEPT, ids=lambda kept: str(kept.seed))
def test_a_seed_that_has_found_a_fault_finds_none_now(kept: Kept) -> None:
    _counts(kept.seed, kept.faults)


def test_a_campaign_runs_each_seed_once_in_any_number_of_processes() -> None:
    one, two = (sorted(outcomes(Plan(5, seeds=4, jobs=jobs, faults=2)), key=lambda o: o.seed) for jobs in (1, 2))
    assert [outcome.seed for outcome in one] == [5, 6, 7, 8]
    assert one == two
    assert not any(outcome.violation for outcome in one)


def test_a_campaign_says_which_seed_failed_and_goes_on_to_the_others() -> None:
    with writes_done_at_once():
        found = list(outcomes(Plan(0, seeds=8, jobs=2)))
    assert sorted(outcome.seed for outcome in found) == list(range(8))
    assert any(outcome.violation and outcome.trace for outcome in found)


def test_a_seed_has_one_trace() -> None:
    digests = set()
    for _ in range(2):
        run = Run(7)
        run.execute()
        digests.add(run.world.digest)
    assert len(digests) == 1


def test_after_a_run_the_product_is_what_it_was() -> None:
    """The tests that follow in this process must meet the product, not a model that a run left behind."""
    for entry in ("gadget.usb", "gadget.ublk", "gadget.session", "host.usb", "host.session", "host.source"):
        importlib.import_module(f"{entry}.role")
    before = _names_of_the_product()
    assert [name for name, value in before.items() if _is_model(value)] == [], "left behind by a run before this test"
    run = Run(7)
    with substituted(run):
        assert [name for name, value in _names_of_the_product().items() if _is_model(value)], "models are recognised"
    run.execute()
    after = _names_of_the_product()
    assert [name for name, value in before.items() if after[name] is not value] == []


def _names_of_the_product() -> dict[str, object]:
    modules = [name for name in sys.modules if name.partition(".")[0] in ("bus", "common", "gadget", "host")]
    return {f"{module} {name}": value for module in modules for name, value in vars(sys.modules[module]).items()}


def _is_model(value: object) -> bool:
    return isinstance(value, SimpleNamespace) or str(getattr(value, "__module__", "")).startswith("tests.sim")


def _transitions(table: Iterable[tuple[Enum, Enum]]) -> set[str]:
    return {f"transition {type(state).__module__} {state.name} {event.name}" for state, event in table}


def _each_is_driven_or_named(table: set[str], counts: Counter[str], never: Reasons, excused: Reasons) -> None:
    driven, named = ({entry.split(" ", 2)[2] for entry in entries} for entries in (table & counts.keys(), table))
    assert driven & never.keys() == set(), "driven, though it was said to be impossible"
    assert named - driven - never.keys() - excused.keys() == set(), "not driven any more: name it with its reason"
    assert (never | excused).keys() - named == set(), "there is no such transition"


@pytest.mark.timeout(180)
def test_the_seeds_drive_what_they_are_for(capsys: pytest.CaptureFixture[str]) -> None:
    counts = sum((counts_of(group) for group in range(GROUPS)), Counter())
    link = _transitions(LINK_TABLE)
    session = _transitions(SESSION_TABLE)
    with capsys.disabled():
        for table in (link, session):
            missing = sorted(entry.split(" ", 2)[2] for entry in table - counts.keys())
            print(f"\n{len(table & counts.keys())} of {len(table)} transitions; not driven: {', '.join(missing)}")
        deaths = sorted(name for name in counts if name.startswith(("death of ", "killed ")))
        print(f"{len(deaths)} pairs of a death and a stage:")
        for name in deaths:
            print(f"  {counts[name]:5} {name}")
    assert len(link & counts.keys()) >= 11
    assert len(session & counts.keys()) >= 29
    _each_is_driven_or_named(link, counts, LINK_NEVER, LINK_NOT_MODELLED | LINK_SELDOM)
    _each_is_driven_or_named(session, counts, {}, SESSION_NOT_MODELLED | SESSION_SELDOM)
    assert counts["bio FUA"] and counts["source WRITE_ZEROES"] and counts["zeroes written instead"]
    assert counts["ublk reissued"] and counts["halts"] and counts["set_interface"] and counts["source job after kill"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_a_deliberate_fault_is_found(mutation: Mutation) -> None:
    found = found_at(mutation, MUTATION_SEEDS)
    assert found is not None, f"{mutation.__doc__} was not found by {MUTATION_SEEDS}"
    broken = ("TypeError", "AttributeError", "NameError")
    assert not any(error in found[1] for error in broken), (
        f"the patch does not fit the product any more, so it shows nothing: {found[1]}"
    )
