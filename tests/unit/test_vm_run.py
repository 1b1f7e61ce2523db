"""A few real guests, because everything on a real kernel stands on them. About 5 s each under emulation."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tools.vm.images import Lacking, cache_directory, ensure_image, require

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(autouse=True, scope="module")
def kernel() -> None:
    try:
        require(("qemu-system-x86_64", "qemu-system-x86"))
        ensure_image(cache_directory(), print)
    except Lacking as lacking:
        pytest.skip(str(lacking))


def vm(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.vm", "run", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_output_and_exit_status_come_back_and_only_shares_are_written(tmp_path: Path) -> None:
    share, outside = tmp_path / "share", tmp_path / "outside"
    share.mkdir()
    outside.mkdir()
    script = f"""
    pwd; uname -r; ls /sys/class/udc; echo "$GREETING"; echo to stderr >&2
    mkdir -p {outside}; echo lost >{outside}/file; echo kept >{share}/file; echo lost >{ROOT}/lost
    [ -e /dev/ublk-control ] && [ -d /sys/kernel/config/usb_gadget ] || exit 1
    head -c 1000000 /dev/zero >/dev/stdout; exit 17"""
    done = vm("--udcs", "2", "--env", "GREETING=a 'b' $c", "--share", str(share), "--", "sh", "-c", script)
    lines, zeroes = done.stdout[:-1_000_000].splitlines(), done.stdout[-1_000_000:]
    assert lines[0] == str(ROOT) and lines[1].startswith("6.12.")
    assert lines[2:] == ["dummy_udc.0", "dummy_udc.1", "a 'b' $c"]
    assert zeroes == "\0" * 1_000_000
    assert (done.stderr, done.returncode) == ("to stderr\n", 17)
    assert (share / "file").read_text() == "kept\n"
    assert not list(outside.iterdir()) and not (ROOT / "lost").exists()


def test_hang_ends_at_the_time_limit_and_shows_what_ran() -> None:
    done = vm("--timeout", "40", "--", "sh", "-c", "echo begun; sleep 4711")
    assert (done.returncode, done.stdout) == (124, "begun\n")
    assert "sleep 4711" in done.stderr.partition("replug:")[0], "the console does not show the processes"
    assert "replug: the time limit passed, after 40" in done.stderr


def test_kernel_panic_is_told_with_the_console() -> None:
    done = vm("--timeout", "60", "--", "sh", "-c", "echo c >/proc/sysrq-trigger; sleep 100")
    assert done.returncode == 125
    assert "sysrq triggered crash" in done.stderr and "replug: kernel panic, after" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_guest_does_not_outlive_whoever_waits_for_it(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.vm", "run", "--", "sh", "-c", "echo up; sleep 1000"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env=environment)
    assert child.stdout is not None and child.stdout.readline() == b"up\n"
    [qemu] = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    watched = os.pidfd_open(int(qemu))
    child.send_signal(number)
    child.wait(20)
    ended, _, _ = select.select([watched], [], [], 20)
    os.close(watched)
    assert ended, f"QEMU, pid {qemu}, still runs 20 s later"
    if number is signal.SIGTERM:
        assert not list(tmp_path.iterdir()), "temporary files were left"
