"""On which line of a TOML text a key stands. tomllib tells lines only of what is not TOML at all.

A scan of keys and table headers, given a text that tomllib has read. It knows comments, strings of all four kinds and
arrays over many lines, so that what looks like a key inside one is not taken for it. None where it cannot tell.
"""

import re

_KEY = r"""(?:[A-Za-z0-9_-]+|"[^"\\\n]*"|'[^'\n]*')"""
_DOTTED = rf"{_KEY}(?:[ \t]*\.[ \t]*{_KEY})*"
_HEADER = re.compile(rf"[ \t]*\[\[?[ \t]*({_DOTTED})[ \t]*\]")
_ASSIGNMENT = re.compile(rf"[ \t]*({_DOTTED})[ \t]*=")
# What a value is made of, as far as its end is concerned. The order matters: three quotes before one.
_PIECE = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}'
    r"|'''[\s\S]*?'{3,5}"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|#[^\n]*|[\[\]{}\n]|[^\[\]{}\n\"'#]+",
    re.DOTALL,
)


def line_of(text: str, keys: tuple[str, ...]) -> int | None:
    """The line (from 1) of the key, or of the header of the table, named by `keys`: ("host", "block-size")."""
    at = 0
    table: tuple[str, ...] = ()
    while at < len(text):
        header, assignment = _HEADER.match(text, at), _ASSIGNMENT.match(text, at)
        here: tuple[str, ...] = ()
        end = text.find("\n", at)
        if header is not None:
            here = table = _parts(header[1])
        elif assignment is not None:
            here = (*table, *_parts(assignment[1]))
            end = _end_of_value(text, assignment.end())
        if here[: len(keys)] == keys:
            return text.count("\n", 0, at) + 1
        at = len(text) if end < 0 else end + 1
    return None


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in re.findall(_KEY, dotted))


def _end_of_value(text: str, at: int) -> int:
    """Where the line ends that a value ends on."""
    depth = 0
    while at < len(text):
        piece = _PIECE.match(text, at)
        if piece is None:
            return -1
        if piece[0] in ("[", "{"):
            depth += 1
        elif piece[0] in ("]", "}"):
            depth -= 1
        elif piece[0] == "\n" and depth <= 0:
            return at
        at = piece.end()
    return -1
