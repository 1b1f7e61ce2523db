"""A real udevd in the guest: Debian's program and rules out of its package, and ours beside them."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.demo.inside import wait_for

ROOT = Path(__file__).parents[2]
DEBIAN = ROOT / ".setup/debian/root"
needed = pytest.mark.skipif(not DEBIAN.exists(), reason="no udev to copy: `make system` fetches it")


@pytest.fixture(scope="module")
def udevd() -> Iterator[None]:
    # packages that have rules may be here without udev, whose own rules ours stand on
    shutil.copytree(DEBIAN / "lib/udev", "/lib/udev", symlinks=True, dirs_exist_ok=True)
    if not Path("/bin/udevadm").exists():
        shutil.copy(DEBIAN / "bin/udevadm", "/bin/udevadm")
    for library in DEBIAN.rglob("libkmod.so.2*"):
        if not (Path("/usr/lib/x86_64-linux-gnu") / library.name).exists():
            shutil.copy(library, "/usr/lib/x86_64-linux-gnu", follow_symlinks=False)
    for rules in (ROOT / "packaging/udev").glob("*.rules"):
        shutil.copy(rules, "/lib/udev/rules.d")
    program = Path("/lib/systemd/systemd-udevd")
    if not program.exists():
        program.symlink_to("/bin/udevadm")
    process = subprocess.Popen([program])
    wait_for("udevd", lambda: Path("/run/udev/control").exists())
    yield
    process.kill()
    process.wait(10)
    Path("/run/udev/control").unlink()  # that is how others see that one runs


def settle() -> None:
    """Until it has done with every event so far."""
    subprocess.run(["udevadm", "settle", "--timeout=60"], check=True, timeout=70)


def knows(node: Path) -> bool:
    """Has it done with this character device? `settle` says yes while it has not heard of an event yet."""
    number = node.stat().st_rdev
    return Path(f"/run/udev/data/c{os.major(number)}:{os.minor(number)}").exists()
