"""A pytest over several guests: who runs which file, and that no count is lost."""

import json
import sys
from pathlib import Path

import pytest

from tests.unit.test_vm_panic import IN_ALLOCATOR
from tools.vm.counts import Counts, count, failures, one_failure, read_durations, read_junit
from tools.vm.parallel import (
    FIRST_DURATIONS,
    Lane,
    files_of,
    missing_here,
    pytest_command,
    separate,
    split,
    weights,
)

JUNIT = """<?xml version="1.0"?><testsuites><testsuite name="pytest" errors="1" failures="2" skipped="3" tests="10">
<testcase classname="tests.e2e.test_a" name="one" time="1.5"/>
<testcase classname="tests.e2e.test_a" name="two" time="0.5"/>
</testsuite></testsuites>"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("e2e/test_b.py", "e2e/test_a.py", "e2e/deep/test_c.py", "e2e/conftest.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def test_paths_are_told_from_options(tree: Path) -> None:
    arguments = ["-x", "e2e", "-k", "kill", "e2e/test_a.py::test_one"]
    assert separate(arguments, tree) == (["e2e", "e2e/test_a.py::test_one"], ["-x", "-k", "kill"])


def test_each_test_file_is_run_once(tree: Path) -> None:
    files = files_of(["e2e", "e2e/test_a.py"], tree)
    assert files == [str(tree / "e2e" / name) for name in ("deep/test_c.py", "test_a.py", "test_b.py")]


def test_shares_weigh_about_the_same_and_none_is_empty() -> None:
    weights = {"a": 60.0, "b": 30.0, "c": 20.0, "d": 10.0}
    assert split("abcd", weights, 2) == [["a"], ["b", "c", "d"]]
    assert split("ab", weights, 5) == [["a"], ["b"]]
    assert split("", weights, 2) == []


def test_a_machine_that_has_run_nothing_yet_knows_about_how_long_each_file_takes(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    files = files_of([str(root / "tests/e2e")], root)
    kept = json.loads((root / FIRST_DURATIONS).read_text())
    assert sorted(kept) == sorted(f"tests.e2e.{Path(file).stem}" for file in files), "one for each file, and no other"
    shares = split(files, weights(files, root, tmp_path / "nothing"), 2)
    loads = [sum(kept[f"tests.e2e.{Path(file).stem}"] for file in share) for share in shares]
    assert max(loads) < 1.1 * min(loads)
    (tmp_path / "own").write_text(json.dumps({"tests.e2e.test_capture": 7.5}))
    assert weights(files, root, tmp_path / "own")[str(root / "tests/e2e/test_capture.py")] == 7.5


def test_counts_of_a_junit_file() -> None:
    assert read_junit(JUNIT) == Counts(passed=4, failed=3, skipped=3)
    assert read_durations(JUNIT) == {"tests.e2e.test_a": 2.0}


def test_missing_cut_or_empty_results_count_as_failures(tmp_path: Path) -> None:
    whole, cut, empty = tmp_path / "whole.xml", tmp_path / "cut.xml", tmp_path / "empty"
    whole.write_text(JUNIT)
    cut.write_text(JUNIT[:100])
    empty.mkdir()
    assert count([whole]) == Counts(4, 3, 3)
    assert count([cut]) == count([tmp_path / "gone.xml"]) == count([empty]) == Counts(failed=1)


def test_directory_of_results_is_summed_with_what_dead_guests_left(tmp_path: Path) -> None:
    (tmp_path / "junit-1.xml").write_text(JUNIT)
    (tmp_path / "junit-2.xml").write_text(one_failure("no results"))
    assert count([tmp_path]) == Counts(4, 4, 3)


def test_every_failure_is_told_with_its_reason_and_none_without_end(tmp_path: Path) -> None:
    case = '<testcase classname="tests.e2e.test_a" name="{}"><failure message="{}"/></testcase>'
    cases = case.format("one", "AssertionError: " + "x" * 500) + case.format("two", "&lt;b&gt;\nsecond line")
    (tmp_path / "junit-1.xml").write_text(f'<testsuite tests="2" failures="2">{cases}</testsuite>')
    (tmp_path / "junit-2.xml").write_text(one_failure('guest 2 ended with "125"'))
    (tmp_path / "junit-3.xml").write_text(JUNIT[:100])
    one, two, guest, cut = failures([tmp_path])
    assert one.startswith("tests.e2e.test_a::one: AssertionError: xxx") and len(one) < 300
    assert two == "tests.e2e.test_a::two: <b> second line"
    assert guest == 'guest::the guest: guest 2 ended with "125"'
    assert cut.startswith("junit-3.xml: no results, or cut short")
    (tmp_path / "junit-4.xml").write_text(f'<testsuite tests="50" failures="50">{cases * 25}</testsuite>')
    assert len(failures([tmp_path])) == 21 and failures([tmp_path])[-1] == "and 34 more"


@pytest.mark.parametrize(
    ("counts", "exit_code"),
    [(Counts(passed=1), 0), (Counts(passed=1, failed=1), 1), (Counts(skipped=5), 1), (Counts(), 1)],
)
def test_success_needs_a_test_that_ran_and_none_that_failed(counts: Counts, exit_code: int) -> None:
    assert counts.exit_code == exit_code


def test_closing_line() -> None:
    assert str(Counts(1, 2, 3)) == "1 passed, 2 failed, 3 skipped"


def test_pytest_talks_unless_told_otherwise() -> None:
    assert "-v" in pytest_command([], Path("j"), ["t"])
    assert "-v" not in pytest_command(["-q"], Path("j"), ["t"])


def test_direct_run_needs_root_ublk_and_a_dummy_controller(tmp_path: Path) -> None:
    assert missing_here(tmp_path, 1000) == "needs root"
    assert missing_here(tmp_path, 0).startswith("no /dev/ublk-control")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "ublk-control").touch()
    (tmp_path / "sys/class/udc/fe980000.usb").mkdir(parents=True)  # a real one: not ours to touch
    assert missing_here(tmp_path, 0).startswith("no dummy USB device controller")
    (tmp_path / "sys/class/udc/dummy_udc.0").mkdir()
    assert missing_here(tmp_path, 0).startswith("no /sys/kernel/config/usb_gadget")
    (tmp_path / "sys/kernel/config/usb_gadget").mkdir(parents=True)
    assert missing_here(tmp_path, 0) == ""


def test_a_guest_without_results_is_told_with_its_kernels_last_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lane = Lane(2, [], tmp_path)
    lane.start([sys.executable, "-c", "raise SystemExit(137)"], tmp_path)
    lane.console.write_text("boot\n" * 100 + "Out of memory: Killed process 77 (pytest)\n")
    assert lane.finish() == Counts(failed=1)
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "[2] no results: guest 2 ended with exit status 137"
    assert told[-1] == "[2] Out of memory: Killed process 77 (pytest)" and len(told) < 50


def test_a_guest_whose_kernel_died_is_a_failure_that_tells_its_first_fault(tmp_path: Path) -> None:
    lane = Lane(1, [], tmp_path)
    code = f"import pathlib, sys; pathlib.Path({str(lane.console)!r}).write_text({IN_ALLOCATOR!r}); sys.exit(125)"
    assert lane.run([sys.executable, "-c", code], tmp_path) == Counts(failed=1)
    assert "its kernel died: Oops: general protection fault" in lane.junit.read_text()


def test_a_share_that_was_not_begun_is_not_begun_after_the_end(tmp_path: Path) -> None:
    lane = Lane(1, [], tmp_path)
    lane.stop()
    assert lane.run([sys.executable, "-c", f"open({str(lane.junit)!r}, 'w')"], tmp_path) == Counts(failed=1)
    assert "ended with exit status 125" in lane.junit.read_text()
