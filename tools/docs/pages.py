"""The reference page (Markdown) and the man page (man(7) macros) as texts, made from tools.docs.tree."""

from collections.abc import Iterable

from common.errors import Exit
from tools.docs.tree import Command, Option, commands, common_options

EXITS = {
    Exit.DONE: "done, or healthy",
    Exit.FAULT: "it ran and found a fault; for `status`: degraded",
    Exit.BAD_INPUT: "wrong use, or bad input",
    Exit.BUSY: "busy: someone holds what is asked for, and is named",
    Exit.LACKING: "this machine lacks something, which is named with its cure",
    Exit.DOWN: "nothing runs",
}
_INTRODUCTION = """\
# Commands

Made from the parser by `python -m tools.docs`; a test fails where it is not what the parser says.

Sizes are written `64K` or `1G`, times `500ms` or `30s`, ids in hex with `0x`. An error is one line on stderr: what is
wrong, why, and what to do. Where only one side runs on a machine `--side` is not needed. `replug --version` tells the
version.
"""


def markdown() -> str:
    parts = [_INTRODUCTION, "## Every command\n", _table("option", common_options()), _exits()]
    for command in commands():
        parts.append(f"## {command.name}\n")
        parts.append(f"{_sentence(command.text)}\n")
        parts.append(f"```\n{command.usage}\n```\n")
        if command.arguments:
            parts.append(_table("argument", command.arguments))
        if command.options:
            parts.append(_table("option", command.options))
    return "\n".join(parts)


def _table(head: str, rows: Iterable[Option]) -> str:
    lines = [f"| {head} | meaning |", "|---|---|"]
    lines += [f"| `{_cell(row.form)}` | {_cell(row.text)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<")


def _exits() -> str:
    lines = ["## Exit statuses\n", "| status | meaning |", "|---|---|"]
    return "\n".join(lines + [f"| {int(status)} | {text} |" for status, text in EXITS.items()]) + "\n"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def man() -> str:
    lines = [
        ".TH REPLUG 1",
        ".SH NAME",
        "replug \\- block devices of a USB gadget whose bytes lie on the USB host",
        ".SH SYNOPSIS",
        *(f".B {_roff(command.usage)}\n.br" for command in commands()),
        ".SH DESCRIPTION",
        "An inverted USB disk: a USB gadget gets block devices /dev/ublkbN, and the host holds their bytes.",
        "Every process of it may be killed while the disk is in use: I/O waits, and goes on.",
        ".SH OPTIONS OF EVERY COMMAND",
        *_paragraphs(common_options()),
        ".SH COMMANDS",
    ]
    for command in commands():
        lines += _man_command(command)
    lines.append(".SH EXIT STATUS")
    lines += _paragraphs(Option(str(int(status)), text) for status, text in EXITS.items())
    lines += [".SH FILES", *_paragraphs([Option("/run/replug", "sockets, logs and state of the sides that run")])]
    lines += [*_paragraphs([Option("/etc/replug/*.toml", "configuration, where a service manager starts a side")])]
    return "\n".join(lines) + "\n"


def _man_command(command: Command) -> list[str]:
    text = _roff(_sentence(command.text))
    return [f".SS {_roff(command.name)}", text, *_paragraphs((*command.arguments, *command.options))]


def _paragraphs(options: Iterable[Option]) -> list[str]:
    return [line for option in options for line in (".TP", f".B {_roff(option.form)}", _roff(option.text))]


def _roff(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "")
    return "\\&" + text if text[:1] in (".", "'") else text
