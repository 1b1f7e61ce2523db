"""The Debian package installed by dpkg in the guest, with Debian's own Python packages: its demo, and its removal.

No virtual environment takes part. Run by `make system`.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.package.deb import build

ROOT = Path(__file__).parents[2]
DEBS = ROOT / ".setup/debian/debs"
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(800),
    pytest.mark.skipif(not DEBS.exists(), reason="Debian's packages are not here: `make system` fetches them"),
]
BARE = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


# Of other tests. An unpacked /lib of theirs would be a directory in the place of the link, and nothing run any more.
OTHERS = ("udev", "libkmod", "openrc", "librc", "libeinfo", "dracut")


def unpack_what_it_needs() -> None:
    for deb in DEBS.glob("*.deb"):  # unpacked only: dpkg would compile all of pygments, in minutes
        if not deb.name.startswith(OTHERS):
            subprocess.run(["dpkg-deb", "-x", deb, "/"], check=True, env=BARE, timeout=120)
    subprocess.run(["ldconfig"], check=True, env=BARE, timeout=120)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    package = build(ROOT, tmp_path_factory.mktemp("dist"))
    unpack_what_it_needs()
    done = subprocess.run(
        ["dpkg", "--force-depends", "-i", package], env=BARE, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    yield
    gone = subprocess.run(["dpkg", "-P", "replug"], env=BARE, capture_output=True, text=True, timeout=300)
    assert gone.returncode == 0, gone.stderr
    assert not Path("/usr/lib/replug").exists() and not Path("/usr/bin/replug").exists()


def test_the_demo_passes_from_the_installed_package(installed: None) -> None:
    demo = subprocess.run(
        ["/usr/bin/replug", "demo", "--direct"], env=BARE, cwd="/", capture_output=True, text=True, timeout=600
    )
    assert demo.returncode == 0, demo.stdout[-3000:] + demo.stderr[-2000:]
    assert demo.stdout.splitlines()[-1].startswith("demo: pass, ")
