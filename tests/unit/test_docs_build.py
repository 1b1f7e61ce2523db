"""The documents as HTML: built without a fault, and each fault of Markdown that it passes over in silence is found."""

import re
from pathlib import Path

import pytest

from tools.docs.build import build, faults, pages, read

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", pages(ROOT), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_has_no_fault(path: Path) -> None:
    assert faults(read(path)) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("| a | b |\n|---|---|\n| 1 |\n", ":3: 1 cells in a table of 2"),
        ("| a | b |\n|---|---|\n| 1 | 2 | 3 |\n", ":3: 3 cells in a table of 2"),
        ("| a | b |\n|---|---|\n| `x|y` | 2 |\n", ":3: 3 cells in a table of 2"),
        ("| a | b |\n|---|---|---|\n| 1 | 2 |\n", ":1: a row of no table: it stands in the text as it is"),
        ("text\n\n```sh\nls\n", ":3: a fence that is not closed"),
        ("```sh\nls\n\n````\n~~~\n", ":1: a fence that is not closed"),
        ("# One thing\n\n## One, thing\n", ":3: a second heading with the anchor #one-thing"),
        ("see\n[x](none.md)\n", ":1: none.md: no such file"),
        ("![x](none.svg)\n", ":1: none.svg: no such file"),
        ("# A\n\n[x](#b)\n", ":3: #b: no such heading"),
        ("[x](page.md#b)\n", ":1: page.md#b: no such heading"),
        ("give <name> here\n", ":1: it is taken for HTML, and vanishes: put it in backticks"),
        ("<b>\n", ":1: it is taken for HTML, and vanishes: put it in backticks"),
        ("see [the page][there]\n", ":1: a reference that is not defined"),
    ],
)
def test_a_fault_names_file_and_line(tmp_path: Path, text: str, fault: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    assert f"{page}{fault}" in faults(read(page))


def test_what_is_right_has_no_fault(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A b\n\n| a | b |\n|---|---|\n| `x\\|y` | [z](#a-b) |\n\n```sh\n| x | <y>\n```\n\n`<z>`, https://a/\n"
    )
    assert faults(read(page)) == []


def test_the_pages_are_written_with_their_anchors_links_and_pictures(tmp_path: Path) -> None:
    assert build(ROOT, tmp_path) == []
    index = (tmp_path / "docs/index.html").read_text()
    assert '<a href="tutorial/first-disk.html">' in index and ".md" not in index
    recovery = (tmp_path / "docs/explanation/recovery.html").read_text()
    assert '<h2 id="the-fault-table">' in recovery and "<table>" in recovery
    for source in re.findall(r'src="([^"]+)"', (tmp_path / "README.html").read_text()):
        assert (tmp_path / source).is_file()


def test_with_a_fault_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("README", "ARCHITECTURE", "CONTRIBUTING", "CHANGELOG"):
        (tmp_path / f"{name}.md").write_text("# Fine\n")
    (tmp_path / "docs/wrong.md").write_text("[x](none.md)\n")
    assert build(tmp_path, tmp_path / "out") == [f"{tmp_path}/docs/wrong.md:1: none.md: no such file"]
    assert not (tmp_path / "out").exists()
