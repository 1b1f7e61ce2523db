"""`make docs`: every page as HTML. What its reader would stumble over is a fault, and there is no page then.

Faults are what Markdown itself passes over in silence: rows of a table with more or fewer cells than its head, a fence
that nobody closes, two headings with one anchor, links that lead nowhere, what looks like HTML and so vanishes.
"""

import html
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

_PIPE = re.compile(r"(?<!\\)\|")
_STYLE = "body{max-width:60rem;margin:auto;padding:1rem;font-family:sans-serif}"
_STYLE += "pre{background:#eee;padding:.5rem;overflow:auto}"
_STYLE += "table{border-collapse:collapse}td,th{border:1px solid #999;padding:.2rem .5rem;text-align:left}"


@dataclass(frozen=True)
class Page:
    """One Markdown file, read. `lines` are counted from 0, as tokens do."""

    path: Path
    lines: tuple[str, ...]
    tokens: tuple[Token, ...]

    def at(self, token: Token) -> str:
        return f"{self.path}:{(token.map or [0])[0] + 1}"


def read(path: Path) -> Page:
    text = path.read_text()
    return Page(path, tuple(text.splitlines()), tuple(_markdown().parse(text)))


def pages(root: Path) -> list[Path]:
    """All that people read, the front page first."""
    top = [root / f"{name}.md" for name in ("README", "ARCHITECTURE", "CONTRIBUTING", "CHANGELOG")]
    return [*top, *sorted((root / "docs").rglob("*.md"))]


def build(root: Path, destination: Path) -> list[str]:
    """Write them all, or return the faults and write nothing."""
    found = [read(path) for path in pages(root)]
    wrong = [fault for page in found for fault in faults(page)]
    if wrong:
        return wrong
    for page in found:
        target = destination / page.path.relative_to(root).with_suffix(".html")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_rendered(page))
        for link, _ in links(page):
            file = page.path.parent / link.partition("#")[0]
            if not _is_foreign(link) and file.is_file() and file.suffix != ".md":  # a picture, say
                copy = destination / file.resolve().relative_to(root.resolve())
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
    return []


def faults(page: Page) -> list[str]:
    """`FILE:LINE: what is wrong`, for each."""
    return [*_fences(page), *_tables(page), *_anchors(page), *_links(page), *_vanishing(page)]


def _fences(page: Page) -> Iterator[str]:
    for token in page.tokens:
        if token.type == "fence" and token.map is not None:
            last = page.lines[min(token.map[1], len(page.lines)) - 1].strip()
            if last != token.markup or token.map[1] - token.map[0] < 2:
                yield f"{page.at(token)}: a fence that is not closed"


def _tables(page: Page) -> Iterator[str]:
    for token in page.tokens:
        if token.type == "table_open" and token.map is not None:
            rows = page.lines[token.map[0] : token.map[1]]
            for number, row in enumerate(rows, token.map[0] + 1):
                if (cells := _cells(row)) != _cells(rows[0]):
                    yield f"{page.path}:{number}: {cells} cells in a table of {_cells(rows[0])}"
        elif token.type == "inline" and token.map is not None and not _in_table(token):
            for number, row in enumerate(token.content.splitlines(), token.map[0] + 1):
                if row.lstrip().startswith("|"):
                    yield f"{page.path}:{number}: a row of no table: it stands in the text as it is"


def _cells(row: str) -> int:
    return len(_PIPE.findall(row.strip().strip("|"))) + 1 if not row.strip().endswith("\\|") else -1


def _in_table(token: Token) -> bool:
    return token.level >= 4  # table, head or body, row, cell; a list in a list is deeper, and has no such lines


def _anchors(page: Page) -> Iterator[str]:
    seen: set[str] = set()
    for token, anchor in _headings(page):
        if anchor in seen:
            yield f"{page.at(token)}: a second heading with the anchor #{anchor}"
        seen.add(anchor)


def _headings(page: Page) -> Iterator[tuple[Token, str]]:
    for token, inline in zip(page.tokens, page.tokens[1:], strict=False):
        if token.type == "heading_open":
            yield token, re.sub(r"[^\w\- ]", "", inline.content.lower()).strip().replace(" ", "-")


def links(page: Page) -> Iterator[tuple[str, Token]]:
    """Where each link and picture leads, with the piece of text that it stands in."""
    for token in page.tokens:
        for child in token.children or ():
            target = child.attrGet("href" if child.type == "link_open" else "src")
            if child.type in ("link_open", "image") and target is not None:
                yield str(target), token


def _is_foreign(target: str) -> bool:
    return target.startswith(("http://", "https://"))


def _links(page: Page) -> Iterator[str]:
    for target, token in links(page):
        file, _, anchor = target.partition("#")
        there = page.path.parent / file if file else page.path
        if _is_foreign(target):
            continue
        if not there.exists():
            yield f"{page.at(token)}: {target}: no such file"
        elif anchor and anchor not in {name for _, name in _headings(read(there))}:
            yield f"{page.at(token)}: {target}: no such heading"


def _vanishing(page: Page) -> Iterator[str]:
    for token in page.tokens:
        if token.type == "html_block" or any(child.type == "html_inline" for child in token.children or ()):
            yield f"{page.at(token)}: it is taken for HTML, and vanishes: put it in backticks"
        if token.type == "inline" and re.search(
            r"\]\[\w*\]", "".join(c.content for c in token.children or () if c.type == "text")
        ):
            yield f"{page.at(token)}: a reference that is not defined"


def _rendered(page: Page) -> str:
    title = next((inline.content for token, inline in zip(page.tokens, page.tokens[1:], strict=False)
                  if token.type == "heading_open"), page.path.stem)  # fmt: skip
    for token, anchor in _headings(page):
        token.attrSet("id", anchor)
    for token in page.tokens:
        for child in token.children or ():
            target = child.attrGet("href")
            if isinstance(target, str) and not _is_foreign(target):
                child.attrSet("href", re.sub(r"\.md(?=#|$)", ".html", target))
    body = _markdown().renderer.render(list(page.tokens), _markdown().options, {})
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}</body></html>\n'


def _markdown() -> MarkdownIt:
    return MarkdownIt("commonmark").enable("table")


def show(root: Path, destination: Path, stale: Sequence[str] = ()) -> int:
    """For the command line: 1 and a line for each fault, or where the pages are. `stale`: pages to be made anew."""
    wrong = [f"{name}: not what the code says: run 'python -m tools.docs'" for name in stale] or build(
        root, destination
    )
    for fault in wrong:
        print(f"docs: {os.path.relpath(fault, root)}" if fault.startswith("/") else f"docs: {fault}")
    if not wrong:
        print(f"docs: {destination}/README.html")
    return 1 if wrong else 0
