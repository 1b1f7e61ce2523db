"""The grammar of the command line as plain values: what the reference page and the man page are made from.

Only words of the parser itself: nothing here depends on the width of a terminal or the version of argparse.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from tools.cli.grammar import grammar, subcommands

PROGRAM = "replug"
_EVERYWHERE = ("--debug", "--instance")  # told once


@dataclass(frozen=True)
class Option:
    """An option or a positional argument: how it is written, and what it means."""

    form: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command with its own words: `replug host serve`."""

    words: tuple[str, ...]
    text: str
    arguments: tuple[Option, ...]
    options: tuple[Option, ...]

    @property
    def name(self) -> str:
        return " ".join((PROGRAM, *self.words))

    @property
    def usage(self) -> str:
        return " ".join([self.name, *(["[OPTION]..."] if self.options else []), *(a.form for a in self.arguments)])


def commands() -> list[Command]:
    """Every command that does something, in the order of the help."""
    return list(_walk(grammar(), (), ""))


def common_options() -> tuple[Option, ...]:
    """Those that every command has."""
    status = subcommands(grammar())["status"]
    return tuple(_option(action) for action in status._actions if set(action.option_strings) & set(_EVERYWHERE))


def _walk(parser: argparse.ArgumentParser, words: tuple[str, ...], text: str) -> Iterator[Command]:
    parser = _delegated().get(" ".join(words), parser)
    below = subcommands(parser)
    if not below:
        own = [a for a in parser._actions if not isinstance(a, argparse._HelpAction)]
        yield Command(
            words,
            text,
            tuple(_argument(a) for a in own if not a.option_strings),
            tuple(_option(a) for a in own if a.option_strings and not set(a.option_strings) & set(_EVERYWHERE)),
        )
        return
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, child in below.items():
                yield from _walk(child, (*words, name), helps.get(name, ""))


def _delegated() -> dict[str, argparse.ArgumentParser]:
    """Commands that read their own words: the grammar knows only that they are there."""
    from tools.demo import parser as demo
    from tools.vm.__main__ import parser as vm

    return {"demo": demo(), "vm": vm()}


def _argument(action: argparse.Action) -> Option:
    name = str(action.metavar or action.dest)
    form = {"*": f"[{name}]...", "+": f"{name}...", "?": f"[{name}]"}.get(str(action.nargs), name)
    return Option(form, _text(action))


def _option(action: argparse.Action) -> Option:
    value = "" if action.nargs == 0 else " " + (str(action.metavar) if action.metavar else _choices(action))
    return Option(", ".join(action.option_strings) + value, _text(action))


def _choices(action: argparse.Action) -> str:
    return "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()


def _text(action: argparse.Action) -> str:
    return (action.help or "").replace("%%", "%")
