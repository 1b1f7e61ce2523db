"""Which gadget is meant, and that two replugs never have the same one."""

from pathlib import Path

import pytest

from host.session.choice import Facts, chooser
from host.session.finder import Gadget, find
from host.session.hold import Hold
from tests.unit.test_host_session import SMOO, device

FACTS = Facts("board-7", 0x1D6B, 0x0104, "1-2.3")


@pytest.mark.parametrize("text", [None, "board-7", "serial:board-7", "id:1d6b:0104", "id:0x1D6B:104", "port:1-2.3"])
def test_each_form_means_the_gadget(text: str | None) -> None:
    assert chooser(text)(FACTS)


@pytest.mark.parametrize(
    "text", ["board", "serial:board-8", "id:1d6b:0105", "id:1d6c:0104", "port:1-2", "port:1-2.3.1"]
)
def test_each_form_can_mean_another(text: str) -> None:
    assert not chooser(text)(FACTS)


@pytest.mark.parametrize("serial", ["port:1-2.3", "id:1d6b:0104", "a:b"])
def test_every_serial_number_can_be_written(serial: str) -> None:
    assert chooser(f"serial:{serial}")(Facts(serial, 1, 1, "9-9"))
    assert chooser("a:b")(Facts("a:b", 1, 1, "9-9"))


@pytest.mark.parametrize(
    "text", ["", "serial:", "id:1d6b", "id:1d6b:", "id:x:y", "id:12345:1", "port:", "port:2", "port:usb1"]
)
def test_what_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"write it as|leave the choice out"):
        chooser(text)


def test_gadgets_are_found_by_id_and_by_port(tmp_path: Path) -> None:
    for name, address, product in (("2-1", 5, "0104"), ("2-1.4", 6, "0105")):
        device(tmp_path, name, address, f"s{address}", SMOO)
        (tmp_path / name / "idVendor").write_text("1d6b\n")
        (tmp_path / name / "idProduct").write_text(f"{product}\n")
    assert [gadget.address for gadget in find("id:1d6b:0105", tmp_path)] == [6]
    assert [gadget.address for gadget in find("port:2-1", tmp_path)] == [5]


GADGET, OTHER = Gadget(1, 2, "a", "high"), Gadget(1, 3, "b", "high")


@pytest.fixture
def nodes(tmp_path: Path) -> Path:
    (tmp_path / "001").mkdir()
    for number in ("002", "003"):
        (tmp_path / "001" / number).touch()
    return tmp_path


def test_two_replugs_never_hold_one_gadget(nodes: Path) -> None:
    one, two = Hold(nodes), Hold(nodes)
    assert one.take(GADGET) and one.take(GADGET)
    assert not two.take(GADGET)
    assert two.take(OTHER) and not one.take(OTHER)


def test_who_takes_another_lets_go_of_the_first(nodes: Path) -> None:
    one, two = Hold(nodes), Hold(nodes)
    assert one.take(GADGET) and one.take(OTHER) and two.take(GADGET)


def test_a_gadget_that_comes_back_with_the_same_number_is_another(nodes: Path) -> None:
    one, two = Hold(nodes), Hold(nodes)
    assert one.take(GADGET)
    (nodes / "001/002").rename(nodes / "gone")
    (nodes / "001/002").touch()
    assert two.take(GADGET) and not one.take(GADGET)


def test_a_node_that_cannot_be_opened_is_no_reason_against_a_gadget(tmp_path: Path) -> None:
    assert Hold(tmp_path).take(GADGET)
