"""Somebody's own image served where there is no board: a kill does no harm, and the file stays as it is."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def test_an_image_is_served_from_an_overlay_and_read_through_a_kill(tmp_path: Path) -> None:
    image = tmp_path / "own.img"
    image.write_bytes(os.urandom(3 << 20))
    before = hashlib.sha256(image.read_bytes()).digest()
    image.chmod(0o400)
    done = subprocess.run(
        [sys.executable, "-m", "tools.demo.trial", str(image)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].startswith(f"replug: {image} is /dev/ublkb") and lines[1].endswith(" here, 3.0M")
    assert "killed (SIGKILL) after 1.5M" in done.stdout
    assert lines[-1].startswith("replug: pass: 3.0M read, every byte is the image's; the longest read took ")
    assert hashlib.sha256(image.read_bytes()).digest() == before
    assert not list(Path("/dev").glob("ublkb*")) and not list(Path("/run/replug").glob("*")), "nothing is left"
