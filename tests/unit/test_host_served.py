"""Adding and removing exports of a running host side: the set and its file, usb's table, and what the gadget does."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common import limits
from common.errors import Refused
from common.wire import ExportRecord
from common.wire_v1 import ExportFlag, ExportV1
from gadget.session.core import configure, without
from gadget.session.state import State
from host.session.export import removed
from host.session.served import Served, load_served, save_served, served_path
from host.usb import core as usb

RECORD = ExportRecord(7, 512, 1 << 20)


def source(number: int, name: str = "") -> dict[str, Any]:
    fields = {"export_id": number, "block_size": 512, "size_bytes": 1 << 20, "name": name or f"d{number}"}
    return {**fields, "path": f"/d{number}", "read_only": False, "identity": f"file {number}"}


# -- the set ---------------------------------------------------------------------------------------------------------
def test_one_said_twice_is_the_same_and_one_that_is_there_is_refused_by_name() -> None:
    served = Served((source(1),)).add(source(2))
    assert [export.name for export in served.exports] == ["d1", "d2"]
    assert served.add(source(2)) == served, "the command was killed before it heard the answer"
    with pytest.raises(Refused, match="other: served already, as d1"):
        served.add(source(1, "other"))
    with pytest.raises(Refused, match="d1: another export has this name"):
        served.add(source(3, "d1"))


def test_as_many_as_the_wire_carries_and_not_one_more() -> None:
    served = Served(tuple(source(n) for n in range(1, limits.MAX_EXPORTS)))
    full = served.add(source(limits.MAX_EXPORTS))
    assert len(full.sources) == limits.MAX_EXPORTS
    with pytest.raises(Refused, match="more cannot be"):
        full.add(source(99))


def test_the_last_export_and_an_unknown_one_cannot_be_removed() -> None:
    with pytest.raises(Refused, match="d1: is the only export"):
        Served((source(1),)).remove("d1")
    with pytest.raises(Refused, match="d9: not served here: there are: d1"):
        Served((source(1),)).remove("d9")


def test_a_removed_export_is_remembered_until_a_gadget_has_heard_of_it() -> None:
    served = Served((source(1), source(2))).remove("d2")
    assert ([e.name for e in served.exports], [e.name for e in served.gone]) == (["d1"], ["d2"])
    assert served.told(served.removed).gone == []
    assert served.add(source(2)).gone == [], "it is back before anybody heard of it"


def test_a_successor_has_the_set_and_a_senseless_file_is_the_first_one(tmp_path: Path) -> None:
    runtime: Any = SimpleNamespace(root=tmp_path)
    served = Served((source(1), source(2))).remove("d1")
    assert load_served(runtime, [source(3)]) == Served((source(3),))
    save_served(runtime, served)
    assert load_served(runtime, [source(3)]) == served
    served_path(runtime).write_text(served_path(runtime).read_text()[:40])
    assert load_served(runtime, [source(3)]) == Served((source(3),))


# -- usb -------------------------------------------------------------------------------------------------------------
def test_usb_forgets_a_removed_export_so_that_another_may_have_its_name() -> None:
    core = usb.UsbCore()
    first, other = usb.Served(RECORD, "disk", False), usb.Served(ExportRecord(9, 512, 4096), "disk", False)
    stays = usb.Served(ExportRecord(8, 512, 4096), "stays", False)
    assert core.offer([first, stays]) == []
    core.source_arrived("source.disk", 1, RECORD, False)
    assert core.offer([stays]) == [first]
    assert core.offer([stays, other]) == []
    core.source_arrived("source.disk", 2, other.record, False)
    assert core.offered() == [stays, other]


# -- the gadget ------------------------------------------------------------------------------------------------------
def test_the_device_of_a_removed_export_is_marked_and_another_is_untouched() -> None:
    stays, goes = ExportV1(ExportRecord(8, 512, 4096)), ExportV1(RECORD, identity=bytes(range(16)))
    first = configure(State(1), (stays, goes), frozenset(), 4096).state
    after = configure(first, (stays, removed(goes)), frozenset({0, 1}), 4096)
    assert after.agreed == {8} and after.refused == {7: "removed by the host"}
    assert [d.removed for d in after.state.devices] == [False, True]
    assert State.decode(after.state.encode()) == after.state
    later = configure(after.state, (stays,), frozenset({0, 1}), 4096).state
    assert [d.removed for d in later.devices] == [False, True], "it is said only once"
    assert [d.record.export_id for d in without(later, 7).devices] == [8]


def test_a_removed_export_that_comes_back_has_its_device_again() -> None:
    export = ExportV1(RECORD)
    first = configure(State(1), (export,), frozenset(), 4096).state
    gone = configure(first, (removed(export),), frozenset({0}), 4096).state
    back = configure(gone, (export,), frozenset({0}), 4096)
    assert back.state == first and back.agreed == {7}


def test_a_removed_export_that_was_never_here_makes_no_device() -> None:
    decision = configure(State(1), (removed(ExportV1(RECORD)),), frozenset(), 4096)
    assert decision.state.devices == () and not decision.agreed


def test_what_is_removed_is_also_ejected_and_flushed_to_who_looks_only_at_that() -> None:
    flags = removed(replace(ExportV1(RECORD), flags=ExportFlag.DISCARD)).flags
    assert flags == ExportFlag.EJECTED | ExportFlag.FLUSHED | ExportFlag.REMOVED | ExportFlag.DISCARD
