"""What the demo says while it goes on: how far a stretch is, and about how long it still takes (issue 5, item 9)."""

import pytest

from tools.demo import show
from tools.demo.show import Estimate, PlainScreen


def test_what_is_left_is_estimated_by_how_it_went_so_far() -> None:
    estimate = Estimate()
    assert estimate.left("read", 0, 100, 10.0) == "", "nothing has moved yet"
    assert estimate.left("read", 20, 100, 14.0) == ", about 16s left"
    assert estimate.left("read", 50, 100, 40.0) == ", about 30s left", "it has become slower"
    assert estimate.left("read", 100, 100, 60.0) == ""


def test_another_stretch_is_estimated_anew_and_faults_are_one() -> None:
    estimate = Estimate()
    estimate.left("read", 0, 100, 0.0)
    assert estimate.left("fault 1/8: cable", 0, 8, 100.0) == ""
    assert estimate.left("fault 3/8: kill -9", 2, 8, 120.0) == ", about 1m00s left"


def test_a_log_gets_a_line_for_each_fifth(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(float(second) for second in range(100))
    monkeypatch.setattr(show.time, "monotonic", lambda: next(clock))
    screen = PlainScreen()
    for done in range(0, 101, 10):
        screen.progress("read", done, 100)
    lines = [line.split("  ")[-1] for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 6 and lines[0] == "... read 0 %" and lines[-1] == "... read 100 %"
    assert all(" left" in line for line in lines[1:-1])
