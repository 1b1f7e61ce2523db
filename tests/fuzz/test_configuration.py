"""A configuration file of any bytes is values and faults, each fault one line; nothing else comes of it."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common import limits
from common.errors import Refused
from tests.fuzz.hurt import hurt
from tools.config import file

GOOD = b"""# both sides
[gadget]
udc = "dummy_udc.0"
queue-depth = 16
max-io = "128K"

[host]
block-size = 4096
[host.board1]
source = ["a.img", 'name=b.img']
read-only = true
gadget = \"\"\"serial:board-7\"\"\"
"""


def look(path: Path) -> list[str]:
    values, faults = file.read(str(path))
    assert set(values) >= set(file.COMMANDS)
    for fault in faults:
        assert fault.startswith(str(path)) and fault.isprintable() and len(fault) < 2000
    for side in file.COMMANDS:
        try:
            file.defaults(str(path), side, "board1")
        except Refused as error:
            assert "\n" not in str(error)
    return faults


def test_the_good_file_is_good(tmp_path: Path) -> None:
    path = tmp_path / "replug.toml"
    path.write_bytes(GOOD)
    assert look(path) == []


@given(data=st.data())
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_hurt_file_is_values_and_faults(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "replug.toml"
    path.write_bytes(data.draw(hurt(GOOD)))
    look(path)


@given(value=st.text(max_size=40))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_for_a_value_is_values_and_faults(value: str, tmp_path: Path) -> None:
    path = tmp_path / "replug.toml"
    path.write_bytes(f"[gadget]\nqueue-depth = {value}\n[host.board1]\nsource = {value}\n".encode(errors="replace"))
    look(path)


@pytest.mark.parametrize(
    "content",
    [
        b"gadget = " + b"[" * 50_000,
        b"gadget = " + b"{a=" * 50_000,
        b"a." * 2_000 + b"b = 1",
        b"gadget.udc = " + b"9" * 5_000,
        b"gadget = 0x" + b"f" * 50_000,
        b"gadget = 1979-13-99",
        b"[gadget]\nudc = '" + b"u" * 60_000 + b"'\nqueue-depth = '" + b"u" * 60_000 + b"'",
        b"'\x1b[2J' = 1",
        b'"\\n\\n" = 1\n[host."\\n"]',
        b"\xff\xfe",
        b"",
    ],
    ids=lambda content: repr(content[:20]),
)
def test_a_file_made_up_by_an_enemy_is_told_in_lines(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "replug.toml"
    path.write_bytes(content)
    assert (look(path) == []) == (content == b"")


def test_more_than_a_configuration_can_be_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "replug.toml"
    path.write_bytes(b"#" * limits.CONFIG_BYTES)
    assert look(path) == []
    path.write_bytes(b"#" * (limits.CONFIG_BYTES + 1))
    assert look(path) == [f"{path}: more than {limits.CONFIG_BYTES} bytes: is it a configuration file?"]
    assert file.read("/dev/zero")[1] == [
        f"/dev/zero: more than {limits.CONFIG_BYTES} bytes: is it a configuration file?"
    ]
