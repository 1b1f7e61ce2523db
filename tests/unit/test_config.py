"""Configuration files: keys are options, values are as on the command line, faults name file, line and key.

Shows issue 5, item 4.
"""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Exit, Refused
from tools.cli import main
from tools.cli.grammar import grammar, leaf
from tools.cli.parser import parse
from tools.config.file import COMMANDS, options_of, read
from tools.config.lines import line_of


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "replug.toml"


def host(*argv: str) -> Any:
    return parse(["host", "serve", *argv])


# -- values ----------------------------------------------------------------------------------------------------------
def test_every_option_is_a_key_and_every_key_an_option() -> None:
    for side, path in COMMANDS.items():
        flags = {flag[2:] for a in leaf(grammar(), *path)._actions for flag in a.option_strings if flag[:2] == "--"}
        positional = {"source"} if side == "host" else set()
        assert set(options_of(side)) == (flags | positional) - {"help", "debug", "config", "instance"}


def test_a_file_says_what_flags_would(file: Path) -> None:
    file.write_text('[host]\nsource = ["a.img", "b=b.img"]\nblock-size = "4K"\nread-only = true\ngadget = "S1"\n')
    options, flags = host("--config", str(file)), host("a.img", "b=b.img", "--block-size", "4K", "--read-only")
    for name in ("source", "block_size", "read_only"):
        assert getattr(options, name) == getattr(flags, name)
    assert options.gadget == "S1"


def test_the_command_line_wins_over_the_file(file: Path) -> None:
    file.write_text('[host]\nsource = "a.img"\nblock-size = 512\ngadget = "S1"\n[gadget]\nqueue-depth = 8\n')
    options = host("--config", str(file), "b.img", "--gadget", "S2")
    assert (options.source, options.block_size, options.gadget) == (["b.img"], 512, "S2")
    options = parse(["gadget", "up", "--config", str(file)])
    assert (options.queue_depth, options.udc) == (8, None)


def test_without_a_source_serve_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("[host]\n")
    with pytest.raises(SystemExit, match=f"^{int(Exit.BAD_INPUT)}$"):
        host("--config", str(file))
    assert capsys.readouterr().err.startswith("replug: no SOURCE: give a disk image")


def test_a_file_that_is_not_there_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["host", "serve", "--config", "/nonexistent.toml"]) != Exit.DONE
    assert capsys.readouterr().err == "replug: /nonexistent.toml: No such file or directory\n"


# -- faults ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('[gadget]\n\n# depth\nqueue-depth = "16"\n', ":4: queue-depth: '16' is not a whole number: write it without"),
        ('[host]\nread-only = "yes"\n', ":2: read-only: 'yes' is not true or false"),
        ('[host]\nblock-size = "4Q"\n', ":2: block-size: '4Q' is not a size: write it as 4096, 64K or 1G"),
        ("[host]\nblock-size = -1\n", ":2: block-size: '-1' is not a size"),
        ("[host]\nblock-size = 4.5\n", ":2: block-size: 4.5 is not a text or a whole number"),
        ("[gadget]\nserial = 12\n", ":2: serial: 12 is not a text: put it in quotes"),
        ("[host]\nsource = [\n 'a',\n 1,\n]\n", ":2: source: 1 is not a text"),
        ("[gadget]\n[gadget.udc]\nx = 1\n", ":2: udc: {'x': 1} is not a text"),
        ("[gadget]\nqueue_depth = 8\n", ":2: queue_depth: not an option of gadget up: the keys are udc, serial,"),
        ("[gadgets]\n", ":1: gadgets: not known here: the tables are [gadget] and [host]"),
        ("host = 1\n", ":1: host: not a table: write it as [host]"),
        ("[gadget]\nqueue-depth = 1\n", ":2: queue-depth: 1: below 5 a dead queue is noticed too late"),
        ("[gadget]\nqueue-depth = 999\n", ":2: queue-depth: 999: a host takes "),
        ('[gadget]\nmax-io = "3K"\n', ":2: max-io: 3K: not a multiple of 4096 up to 131072"),
        ('[gadget]\nserial = "é"\n', ":2: serial: 'é' is not a USB serial number"),
        ('[gadget]\nmetrics = "0.0.0.0:1"\n', ":2: metrics: '0.0.0.0:1' is not a loopback HOST:PORT: use 127."),
        ('[host]\nblock-size = "3K"\n', ":2: block-size: 3K: not a power of two in 512..4096"),
        ('[host]\nsource = ["a.img",\n"nonsense:xx"]\n', ":2: source: nonsense:xx: nonsense: is not a kind of source"),
        ('[host]\nsource = "random:7"\n', ":2: source: random:7: its size is no multiple of 512"),
        ('[host]\nsource = "fault:/s?error=EWHAT&over=/a"\n', ":2: source: fault:/s?error=EWHAT&over=/a: error=EWHAT:"),
        ("[gadget]\nudc = \n", ":2: not TOML: Invalid value at column 7"),
        ('[gadget]\nudc = """a\n\n', ":2: not TOML: Unterminated string at the end of the file"),
    ],
)
def test_a_fault_names_file_line_and_key(file: Path, capsys: pytest.CaptureFixture[str], text: str, fault: str) -> None:
    file.write_text(text)
    assert main(["config", "check", str(file)]) == Exit.BAD_INPUT
    assert capsys.readouterr().err.startswith(f"replug: {file}{fault}")
    with pytest.raises(Refused):
        host("--config", str(file))


def test_a_file_that_is_not_utf8_is_said(file: Path) -> None:
    file.write_bytes(b"[host]\n\xff")
    assert read(str(file))[1] == [f"{file}: not UTF-8 at byte 7: TOML is UTF-8"]


def test_check_tells_every_fault_and_says_if_there_is_none(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("[gadget]\na = 1\n[host]\nb = 2\n")
    assert main(["config", "check", str(file)]) == Exit.BAD_INPUT
    assert [line.split(": ")[2] for line in capsys.readouterr().err.splitlines()] == ["a", "b"]
    file.write_text("[gadget]\nqueue-depth = 16\n")
    assert main(["config", "check", str(file)]) == Exit.DONE
    assert capsys.readouterr().err == f"replug: {file}: no fault\n"


# -- lines -----------------------------------------------------------------------------------------------------------
TRICKY = '''# host = 1
[gadget] # [host]
serial = """
[host]
udc = 1
""" # end
udc = 'a # b = ["' # [host]
"queue-depth" = 8
[ host ]
source = [ # "
  "x = [", 'y"', # block-size = 1
  """
gadget = "no"
""",
]
block-size = "1K"
gadget = { a = "}", b = [1] }
read-only = true'''


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (("gadget",), 2),
        (("gadget", "serial"), 3),
        (("gadget", "udc"), 7),
        (("gadget", "queue-depth"), 8),
        (("host",), 9),
        (("host", "source"), 10),
        (("host", "block-size"), 16),
        (("host", "gadget"), 17),
        (("host", "read-only"), 18),
        (("host", "udc"), None),
    ],
)
def test_the_line_of_a_key(keys: tuple[str, ...], line: int | None) -> None:
    tomllib.loads(TRICKY)
    assert line_of(TRICKY, keys) == line


@given(st.text(alphabet="ab=\"'[]{}#\\\n. ,", max_size=60))
def test_the_scan_ends_on_any_text(text: str) -> None:
    line_of(text, ("no", "such"))


# -- several instances -----------------------------------------------------------------------------------------------
SEVERAL = """
[host]
read-only = true
[host.one]
source = "a.img"
gadget = "S1"
[host.two]
source = ["b.img", "c.img"]
gadget = "id:1d6b:0104"
read-only = false
"""


def test_each_table_within_host_is_an_instance_with_what_host_says(file: Path) -> None:
    file.write_text(SEVERAL)
    several = host("--config", str(file)).several
    assert [(o.instance, o.source, o.gadget, o.read_only) for o in several] == [
        ("one", ["a.img"], "S1", True),
        ("two", ["b.img", "c.img"], "id:1d6b:0104", False),
    ]


def test_one_of_several_is_chosen_by_its_name(file: Path) -> None:
    file.write_text(SEVERAL)
    options = host("--config", str(file), "--instance", "two")
    assert (options.instance, options.source, len(options.several)) == ("two", ["b.img", "c.img"], 1)
    assert main(["host", "serve", "--config", str(file), "--instance", "three"]) == Exit.BAD_INPUT


def test_down_means_every_instance_of_the_file(file: Path) -> None:
    file.write_text(SEVERAL)
    options = parse(["host", "down", "--config", str(file)])
    assert [o.instance for o in options.several] == ["one", "two"]


def test_a_fault_within_an_instance_is_told_with_its_line(file: Path) -> None:
    file.write_text('[host.one]\nsource = "a.img"\ngadgt = "S1"\n[host."a/b"]\nsource = "b.img"\ngadget = "port:x"\n')
    first, *rest = read(str(file))[1]
    assert first.startswith(f"{file}:3: gadgt: not an option of host serve")
    assert [fault.partition(": ")[0] for fault in rest] == [f"{file}:4", f"{file}:6"]


def test_an_instance_without_a_source_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text('[host.one]\nsource = "a.img"\n[host.two]\ngadget = "S1"\n')
    with pytest.raises(SystemExit):
        host("--config", str(file))
    assert "no SOURCE" in capsys.readouterr().err


def test_several_gadget_sides_are_brought_up_one_by_one(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text('[gadget.a]\nudc = "udc.0"\n[gadget.b]\nudc = "udc.1"\n')
    assert main(["gadget", "up", "--config", str(file)]) == Exit.BAD_INPUT
    assert "say which with --instance" in capsys.readouterr().err
    assert parse(["gadget", "up", "--config", str(file), "--instance", "b"]).udc == "udc.1"
