"""The machine that makes mutants: it finds every comparison and entry, installs in place, and names do not move."""

import tomllib
from enum import Enum, auto
from pathlib import Path
from types import ModuleType

import pytest

from tests.mutants.cores import CORES
from tests.mutants.generate import Mutant, of_source, of_table
from tests.mutants.install import install

SOURCE = """
def within(a, b):
    return a < b and not a == 3

class Box:
    @property
    def full(self):
        return any(n in (1, 2) for n in self.items)

    @staticmethod
    def empty(items):
        return items is None or items == []
"""


def names(source: str) -> list[str]:
    return [mutant.name for mutant in of_source(source)]


def module() -> ModuleType:
    made = ModuleType("made")
    made.__file__ = "made.py"
    exec(compile(SOURCE, "made.py", "exec"), made.__dict__)
    return made


def test_each_comparison_and_connective_has_its_mutants() -> None:
    assert names(SOURCE) == [
        "within: a < b and (not a == 3) -> a < b or not a == 3",
        "within: a < b -> a <= b",
        "within: a < b -> a >= b",
        "within: not a == 3 -> a == 3",
        "within: a == 3 -> a != 3",
        "Box.full: n in (1, 2) -> n not in (1, 2)",
        "Box.empty: items is None or items == [] -> items is None and items == []",
        "Box.empty: items is None -> items is not None",
        "Box.empty: items == [] -> items != []",
    ]


def test_names_outlive_lines_and_the_second_of_a_name_has_a_number() -> None:
    assert names("\n\n# more\n" + SOURCE) == names(SOURCE)
    assert names("def f(a):\n    g(a == 1)\n    g(a == 1)") == ["f: a == 1 -> a != 1", "f: a == 1 -> a != 1 (2)"]


def test_a_mutant_is_installed_where_the_functions_are_already_known() -> None:
    made = module()
    within, box = made.within, made.Box()
    box.items = [1]
    assert within(1, 2) and not within(2, 2) and box.full and made.Box.empty(None)
    for name, holds in (
        ("within: a < b -> a <= b", lambda: within(2, 2)),
        ("Box.full: n in (1, 2) -> n not in (1, 2)", lambda: not box.full),
        ("Box.empty: items is None -> items is not None", lambda: not made.Box.empty(None)),
    ):
        install(made, next(mutant for mutant in of_source(SOURCE) if mutant.name == name))
        assert holds(), name


def test_what_would_change_nothing_is_told() -> None:
    with pytest.raises(LookupError, match="is in no function"):
        install(module(), Mutant("nothing", SOURCE))


class State(Enum):
    HERE = auto()
    THERE = auto()


class Step(Enum):
    LEAVE = auto()
    ARRIVE = auto()


TABLE = {(State.HERE, Step.LEAVE): (State.THERE, (Step.LEAVE, Step.ARRIVE))}


def test_an_entry_of_a_table_is_dropped_led_elsewhere_and_robbed_of_each_step() -> None:
    key = (State.HERE, Step.LEAVE)
    results = {}
    for mutant in of_table(TABLE, ""):
        table = dict(TABLE)
        mutant.apply(table)
        results[mutant.name] = table.get(key)
    assert results == {
        "TABLE[HERE, LEAVE] dropped": None,
        "TABLE[HERE, LEAVE] to HERE": (State.HERE, (Step.LEAVE, Step.ARRIVE)),
        "TABLE[HERE, LEAVE] without LEAVE": (State.THERE, (Step.ARRIVE,)),
        "TABLE[HERE, LEAVE] without ARRIVE": (State.THERE, (Step.LEAVE,)),
    }


def test_each_survivor_listed_is_a_mutant_that_exists_and_has_a_reason() -> None:
    from tests.mutants.__main__ import SURVIVORS, mutants_of

    listed = tomllib.loads(Path(SURVIVORS).read_text())
    cores = {core.module: core for core in CORES}
    for name, reasons in listed.items():
        known = {mutant.name for mutant in mutants_of(cores[name])}
        assert reasons.keys() <= known, f"{name}: {reasons.keys() - known}"
        assert all(len(reason) > 10 for reason in reasons.values())
