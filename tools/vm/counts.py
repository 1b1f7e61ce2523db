"""What junit files say: counts that lose no failure, the name and reason of each, seconds for each module."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import quoteattr

TOLD_FAILURES = 20
REASON_CHARS = 200
"""A service that runs the tests may keep only the end of what was printed: the failures must fit into it."""


@dataclass(frozen=True)
class Counts:
    """How many tests did what. An error in set-up or collection, or a dead guest, counts as failed."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped)

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"

    @property
    def exit_code(self) -> int:
        """0 only if something ran and nothing failed."""
        return 0 if self.passed and not self.failed else 1


def one_failure(reason: str) -> str:
    """A junit file in the place of results that a dead guest did not leave: whoever counts later counts it."""
    what = f'<testcase classname="guest" name="the guest"><failure message={quoteattr(reason)}/></testcase>'
    return f'<testsuite name="guest" tests="1" failures="1" errors="0" skipped="0">{what}</testsuite>\n'


def read_junit(text: str) -> Counts:
    """The counts of one junit file. Raises ElementTree.ParseError if it was cut short."""
    counts = Counts()
    for suite in ElementTree.fromstring(text).iter("testsuite"):
        tests, skipped = int(suite.attrib["tests"]), int(suite.attrib["skipped"])
        failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
        # a test that passes and then errors in tear-down is counted twice by pytest: never below zero
        counts += Counts(max(0, tests - failed - skipped), failed, skipped)
    return counts


def count(places: Iterable[Path]) -> Counts:
    """The sum over junit files and directories of them; one that is missing or cut short is a failure."""
    counts = Counts()
    for file in _files(places):
        try:
            counts += read_junit(file.read_text())
        except (FileNotFoundError, ElementTree.ParseError):
            counts += Counts(failed=1)
    return counts


def read_durations(text: str) -> dict[str, float]:
    """Seconds for each test module (dotted name) of one junit file."""
    seconds: dict[str, float] = {}
    for case in ElementTree.fromstring(text).iter("testcase"):
        module = case.attrib.get("classname", "")
        seconds[module] = seconds.get(module, 0.0) + float(case.attrib.get("time", 0))
    return seconds


def failures(places: Iterable[Path]) -> list[str]:
    """A line for each failure or error, `test: reason`; at most TOLD_FAILURES, then how many more there are."""
    lines = [line for file in _files(places) for line in _failed_in(file)]
    more = len(lines) - TOLD_FAILURES
    return lines[:TOLD_FAILURES] + ([f"and {more} more"] if more > 0 else [])


def _failed_in(file: Path) -> Iterator[str]:
    try:
        suites = ElementTree.fromstring(file.read_text())
    except (FileNotFoundError, ElementTree.ParseError):
        yield f"{file.name}: no results, or cut short: the pytest that writes them died, or its guest"
        return
    for case in suites.iter("testcase"):
        for kind in (*case.findall("failure"), *case.findall("error")):
            name = f"{case.attrib.get('classname', '')}::{case.attrib.get('name', '')}"
            yield f"{name}: {_short(kind.attrib.get('message', ''))}"


def _short(reason: str) -> str:
    one_line = " ".join(reason.split())
    return one_line if len(one_line) <= REASON_CHARS else one_line[: REASON_CHARS - 1] + "…"


def _files(places: Iterable[Path]) -> Iterator[Path]:
    """Each junit file; a directory without any stands for one that is missing."""
    for place in places:
        yield from (sorted(place.glob("*.xml")) or [place / "*.xml"]) if place.is_dir() else [place]
