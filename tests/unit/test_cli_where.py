"""Where a command finds the side that is meant: also one that is there and closed to who asks."""

import json
import os
import shutil
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import Exit
from tools.cli import commands, logs, main, metrics, parser, status, where

NOBODY = 65534
# before we are somebody else: the interpreter's files may be closed to others
IMPORTED = (commands, logs, metrics, parser, status)
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.fixture
def of_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A gadget side's runtime directory as root makes it. (pytest's own directories are closed to others.)"""
    base = Path(tempfile.mkdtemp(prefix="rpw-"))
    base.chmod(0o755)
    (base / "gadget-default").mkdir(mode=0o700)
    monkeypatch.setattr(where, "BASES", (base,))
    monkeypatch.delenv("REPLUG_RUNTIME", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", f"{base}/none")
    yield base
    shutil.rmtree(base)


def said_by(uid: int, capfd: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Exit status and words of a command that somebody else gives."""
    pid = os.fork()
    if pid == 0:
        result = 99
        try:
            os.setuid(uid)
            result = main(list(argv))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(result)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), *capfd.readouterr()


def test_who_may_not_see_roots_side_is_told_to_use_sudo(of_root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for command in (["status"], ["log", "usb"], ["metrics"]):
        result, out, err = said_by(NOBODY, capfd, *command)
        assert (result, out) == (Exit.BAD_INPUT, ""), err
        assert err == "replug: instance 'default': the gadget side runs here as root: say it again with sudo\n"


def test_a_program_is_told_the_same(of_root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result, out, err = said_by(NOBODY, capfd, "status", "--json")
    assert (result, err) == (Exit.DOWN, "")
    assert json.loads(out)["reason"] == "the gadget side runs here as root: say it again with sudo"


def test_a_side_of_another_user_names_whose_and_where(of_root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.chown(of_root / "gadget-default", 4242, 4242)
    told = f"the gadget side runs here as user 4242: say it as that user, with REPLUG_RUNTIME={of_root}\n"
    assert said_by(NOBODY, capfd, "status")[2] == f"replug: instance 'default': {told}"


@pytest.mark.parametrize("argv", [["status", "--side", "host"], ["status", "--instance", "b"]])
def test_a_side_that_does_not_run_at_all_is_not_roots(
    of_root: Path, capfd: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    result, _, err = said_by(NOBODY, capfd, *argv)
    assert result == Exit.DOWN and "start a side with" in err
