"""The udev rules name what a gadget really shows, and stand where udev reads them in the right order."""

import re
from pathlib import Path

import pytest

from common.wire import Identity

RULES = Path(__file__).parents[2] / "packaging/udev/70-replug.rules"
_PAIR = re.compile(r'([A-Z]+(?:\{[A-Za-z_]+\})?)\s*(==|!=|\+=|=)\s*"([^"]*)"')
_MATCHES = {"ACTION", "SUBSYSTEM", "ENV"}
_ASSIGNS = {"MODE", "GROUP", "TAG", "ENV", "GOTO", "LABEL"}


def rules() -> list[list[tuple[str, str, str]]]:
    lines = [line for line in RULES.read_text().splitlines() if line and not line.startswith("#")]
    return [_PAIR.findall(line) for line in lines]


def test_every_line_is_made_of_known_matches_and_assignments() -> None:
    for line, pairs in zip(RULES.read_text().splitlines()[-len(rules()) :], rules(), strict=True):
        assert ", ".join(f'{key}{operator}"{value}"' for key, operator, value in pairs) == line
        for key, operator, _ in pairs:
            assert key.partition("{")[0] in (_MATCHES if operator in ("==", "!=") else _ASSIGNS), line


@pytest.mark.parametrize("identity", Identity)
def test_the_interface_is_one_of_the_wire(identity: Identity) -> None:
    kind = "*:{:02x}{:02x}{:02x}:*".format(*identity.value)
    assert ("ENV{ID_USB_INTERFACES}", "==", kind) in [pair for line in rules() for pair in line]


def test_it_is_read_after_usb_id_and_before_uaccess_becomes_an_acl() -> None:
    assert 50 < int(RULES.name.partition("-")[0]) < 73


def test_every_goto_has_its_label() -> None:
    pairs = [pair for line in rules() for pair in line]
    assert {v for k, _, v in pairs if k == "GOTO"} == {v for k, _, v in pairs if k == "LABEL"}


def test_a_gadget_is_opened_by_plugdev_and_by_nobody_else() -> None:
    granting = [line for line in rules() if any(key == "MODE" for key, _, _ in line)]
    granted = [("MODE", "=", "0660"), ("GROUP", "=", "plugdev"), ("TAG", "+=", "uaccess")]
    assert [line[1:4] for line in granting] == [granted] * len(Identity)
