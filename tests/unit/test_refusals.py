"""What a peer sent and was refused: each one counted, by kind, and a flood of them a few lines of the log."""

import json
from pathlib import Path

import pytest

from common import limits
from common.exposition import families, text
from common.log import Log
from common.refusals import Refusals
from tests.chaos.test_seen import parse


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def refusals(tmp_path: Path, clock: Clock) -> Refusals:
    return Refusals(Log(tmp_path / "usb.log", "usb"), clock)


def lines(tmp_path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (tmp_path / "usb.log").read_text().splitlines()]


def test_each_is_counted_by_its_kind_and_logged_with_its_reason(refusals: Refusals, tmp_path: Path) -> None:
    refusals.count("control", "ep0 request 0xc1 0x7f is none of ours")
    refusals.count("message", "Response: 27 bytes, not 28")
    refusals.count("message", "Response: 29 bytes, not 28")
    assert refusals.status() == {"refused": 3, "refusals": {"control": 1, "message": 2}}
    assert [(line["level"], line["text"]) for line in lines(tmp_path)] == [
        ("warning", "refused: ep0 request 0xc1 0x7f is none of ours"),
        ("warning", "refused: Response: 27 bytes, not 28"),
        ("warning", "refused: Response: 29 bytes, not 28"),
    ]


def test_a_flood_is_a_few_lines_and_the_next_line_says_how_many_there_were(
    refusals: Refusals, clock: Clock, tmp_path: Path
) -> None:
    for number in range(limits.REFUSALS_LOGGED):
        refusals.count("message", f"number {number}")
    assert len(lines(tmp_path)) == limits.REFUSALS_LOGGED, "at the limit each has its line"
    for _ in range(10_000):
        refusals.count("message", "one of many")
    assert len(lines(tmp_path)) == limits.REFUSALS_LOGGED
    clock.now_s += limits.REFUSALS_WITHIN_S
    refusals.count("message", "later")
    assert lines(tmp_path)[-1]["text"] == "refused: later" and lines(tmp_path)[-1]["unsaid"] == 10_000
    refusals.count("message", "and another")
    assert "unsaid" not in lines(tmp_path)[-1]
    assert refusals.status()["refused"] == limits.REFUSALS_LOGGED + 10_002


def test_a_flood_of_one_kind_takes_no_line_from_another(refusals: Refusals, tmp_path: Path) -> None:
    for number in range(2 * limits.REFUSALS_LOGGED):
        refusals.count("control", f"number {number}")
    refusals.count("message", "this ends the link")
    assert lines(tmp_path)[-1]["text"] == "refused: this ends the link" and "unsaid" not in lines(tmp_path)[-1]


def test_metrics_tell_them_by_role_and_kind() -> None:
    answers = {"usb": {"refusals": {"request": 3, "message": 1}}, "watchdog": {"processes": []}}
    found = parse(text(families("host", "default", {"exports": [], "refusals": {"answer": 2}}, answers)))
    assert found["replug_refusals_total"] == {
        'role="session",kind="answer"': 2,
        'role="usb",kind="request"': 3,
        'role="usb",kind="message"': 1,
    }
