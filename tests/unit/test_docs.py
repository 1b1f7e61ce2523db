"""The documents are true as far as a machine can tell: commands parse, made pages are current."""

import re
import shlex
from pathlib import Path

import pytest

from common.errors import Refused
from host.source.spec import MEANINGS, OPTIONS, Scheme
from tools.cli.grammar import DELEGATED, grammar, subcommands
from tools.cli.sources import look_at
from tools.config.file import read
from tools.docs.__main__ import PAGES
from tools.docs.messages import in_module
from tools.docs.tree import commands

ROOT = Path(__file__).parents[2]
TOP = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_INLINE = re.compile(r"`(?:sudo )?(replug [^`]+)`")
_OPTION = re.compile(r"--[a-z][a-z-]*")
_SEPARATORS = {"|", "||", "&&", ";", "&"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and text of each block of a page."""
    return _FENCE.findall(text)


def shell_commands(text: str) -> list[list[str]]:
    """Every simple command of the `sh` blocks of a page."""
    found = []
    for language, block in _FENCE.findall(text):
        if language in ("", "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
                lexer.whitespace_split = True
                words: list[str] = []
                for word in [*lexer, ";"]:
                    if word in _SEPARATORS:
                        found.append(words)
                        words = []
                    else:
                        words.append(word)
    return [words[1:] if words[0] == "sudo" else words for words in found if words]


def parses(words: list[str]) -> None:
    """Raises AssertionError with what the parser said."""
    if words[0] in DELEGATED:
        return
    try:
        grammar().parse_args(words)
    except SystemExit as error:
        assert error.code == 0, f"replug {shlex.join(words)}"


def known(text: str) -> None:
    """Words of a command in running text, maybe with places to be filled in: its path and its options exist."""
    parser = grammar()
    for word in text.split()[1:]:
        below = subcommands(parser)
        if not below or word.startswith("-"):
            break
        alternatives = word.split("|")
        assert all(one in below for one in alternatives), f"`{text}`: {word} is none of {', '.join(below)}"
        parser = below[alternatives[0]]
    options = {option for action in parser._actions for option in action.option_strings}
    assert {option for option in _OPTION.findall(text) if option not in options} == set(), f"`{text}`"


@pytest.mark.parametrize("path", [*TOP, *DOCS], ids=name)
def test_every_command_in_a_page_is_one_of_ours(path: Path) -> None:
    text = path.read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    generated = path.name == "commands.md"
    for words in [] if generated else shell_commands(text):
        if words[0] == "replug":
            parses(words[1:])
        if words[0] == "make":
            assert words[1] in targets, f"make {words[1]}"
    for inline in _INLINE.findall(_FENCE.sub("", text)):
        known(inline)


@pytest.mark.parametrize("path", [*TOP, *DOCS], ids=name)
def test_every_configuration_in_a_page_has_no_fault(path: Path, tmp_path: Path) -> None:
    for language, block in _FENCE.findall(path.read_text()):
        if language == "toml":
            file = tmp_path / "replug.toml"
            file.write_text(block)
            assert read(str(file))[1] == []


def test_every_page_is_reached_from_the_index() -> None:
    todo, seen = [ROOT / "docs/index.md"], set()
    while todo:
        page = todo.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        for target in _LINK.findall(page.read_text()):
            there = (page.parent / target.partition("#")[0]).resolve()
            if there.is_file() and there.is_relative_to(ROOT / "docs"):
                todo.append(there)
    assert set(DOCS) - seen == set()


@pytest.mark.parametrize("page", PAGES)
def test_a_made_page_is_current(page: str) -> None:
    assert (ROOT / page).read_text() == PAGES[page](), "run `python -m tools.docs`"


def test_the_reference_has_every_option_of_every_command() -> None:
    text = (ROOT / "docs/reference/commands.md").read_text()
    for command in commands():
        section = text.partition(f"## {command.name}\n")[2].partition("\n## ")[0]
        assert section, command.name
        for option in (*command.options, *command.arguments):
            assert f"| `{option.form}` | ".replace("<", "\\<") in section


def test_every_option_and_argument_says_what_it_means() -> None:
    silent = [(c.name, o.form) for c in commands() for o in (*c.options, *c.arguments) if not o.text]
    assert silent == []


def test_commands_that_read_their_own_words_are_in_the_reference_too() -> None:
    text = (ROOT / "docs/reference/commands.md").read_text()
    assert "## replug demo\n" in text and "| `--image F` | " in text
    assert "## replug vm run\n" in text and "| `--memory SIZE` | " in text


def test_every_kind_of_source_and_each_of_its_options_is_in_the_reference() -> None:
    text = (ROOT / "docs/reference/sources.md").read_text()
    assert set(MEANINGS) == set(OPTIONS) == set(Scheme)
    for scheme in Scheme:
        assert f"| {MEANINGS[scheme]} |" in text
        section = text.partition(f"## Options of `{scheme}:`\n")[2].partition("\n## ")[0]
        for option, meaning in OPTIONS[scheme].items():
            assert f"| `{option}` | {meaning} |" in section


CODE = """
from common import errors
def one(path, why):
    cure = "give another"
    raise Refused(f"{path.name}: no disk: {why!r}: {cure}", Exit.BUSY)
def two(error):
    def cure(): raise errors.Lacking("no module:"
                                     " load it")
    try:
        raise Refused(str(error)) from None
    finally:
        raise argparse.ArgumentTypeError(f"{error} | {len(error)}")
        raise Refused(f"{ERRORS[error]}: again")
"""


def test_a_message_is_found_with_what_its_variables_hold_and_its_exit_status() -> None:
    found = [(message.text, message.status) for message in in_module(CODE, "x.py")]
    assert found == [("NAME: no disk: WHY: give another", 3), ("no module: load it", 4), ("ERRORS: again", 2)]


def test_the_messages_that_a_command_gives_are_those_of_the_page(tmp_path: Path) -> None:
    """Some that can be had here, each against the page's own line, its capitals standing for anything."""
    page = (ROOT / "docs/reference/every-message.md").read_text()
    forms = [
        re.escape(text).replace("\\ ", " ") for text in re.findall(r"^\| `+ ?(.*?) ?`+ \| \d \|$", page, re.MULTILINE)
    ]
    patterns = [re.compile(re.sub(r"(\\\.){3}|[A-Z][A-Z_]+", ".*", form), re.DOTALL) for form in forms]
    (tmp_path / "odd.img").write_bytes(bytes(1000))
    (tmp_path / "none.img").touch()
    for argument in ("odd.img", "none.img", "absent.img", ".", "random:7", "nonsense:x"):
        with pytest.raises(Refused) as error:
            look_at([argument if ":" in argument else f"{tmp_path}/{argument}"], None, False)
        assert any(pattern.fullmatch(str(error.value)) for pattern in patterns), str(error.value)


@pytest.mark.parametrize("wrong", ["replug host serve --no-such-option a.img", "replug stats", "replug kill"])
def test_a_wrong_command_would_be_found(wrong: str) -> None:
    with pytest.raises(AssertionError):
        parses(shell_commands(f"```sh\n{wrong}\n```\n")[0][1:])


@pytest.mark.parametrize("wrong", ["replug gadgt up", "replug gadget up --fast", "replug restart|drain|stop ROLE"])
def test_a_wrong_command_in_running_text_would_be_found(wrong: str) -> None:
    with pytest.raises(AssertionError):
        known(wrong)
