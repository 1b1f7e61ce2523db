"""The root of a guest of another architecture: Debian packages of it, and the wheels that we import, pinned as here.

Made once and kept beside the kernel. Nothing of it runs on this machine, so no package's scripts do either: what they
would have made (links from /bin to /usr/bin, byte code) is made here. Our own modules are not in it: they are shared.
"""

from __future__ import annotations

import compileall
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools.vm.apt import Apt, Lacking, unpack
from tools.vm.arch import BOARDS, Arch
from tools.vm.images import FORMAT, Log, locked

PACKAGES = ("python3", "coreutils", "dash", "e2fsprogs", "mount", "util-linux", "libusb-1.0-0", "libstdc++6")
WHEELS = ("pyzmq", "msgpack", "pyusb", "psutil", "rich", "markdown-it-py", "mdurl", "pygments")
PYTHON = "/usr/bin/python3"
_SITE = "usr/local/lib/python3.{minor}/dist-packages"
_LEFT_OUT = ("linux-image", "linux-base", "initramfs-tools", "udev", "dpkg", "klibc")  # files no guest reads


def ensure_root(cache: Path, arch: Arch, lock: Path, log: Log) -> Path:
    """The root's directory, made first if it is not there. Raises Lacking without the network, or `lock`."""
    if not lock.is_file():
        raise Lacking(f"--arch {arch.value}: {lock.name} is not here: run it from replug's source tree")
    wheels = pins(lock.read_text(), WHEELS)
    key = hashlib.sha256(f"{PACKAGES}{wheels}".encode()).hexdigest()[:12]
    root = cache / f"root-v{FORMAT}-{arch.value}-{key}"
    with locked(cache / "guest.lock"):
        if not root.is_dir():
            log(f"making a root of Debian packages for {arch.value} (once, about 40 MB)")
            with tempfile.TemporaryDirectory(prefix="filling-", dir=cache) as work:
                _fill(Path(work), arch, wheels)
                (Path(work) / "root").rename(root)
    return root


def pins(lock: str, names: Sequence[str]) -> str:
    """The blocks of a requirements file with hashes that pin `names`. Raises Lacking for one that it has not."""
    blocks = {match[1]: block for block in re.split(r"\n(?=\S)", lock) if (match := re.match(r"([\w-]+)==", block))}
    missing = [name for name in names if name not in blocks]
    if missing:
        raise Lacking(f"requirements.lock does not pin {', '.join(missing)}: run 'make lock'")
    return "\n".join(blocks[name] for name in names) + "\n"


def _fill(work: Path, arch: Arch, wheels: str) -> None:
    root, debs = work / "root", work / "debs"
    for directory in ("bin", "lib", "sbin"):
        (root / "usr" / directory).mkdir(parents=True)
        (root / directory).symlink_to(f"usr/{directory}")
    for directory in ("dev", "proc", "sys", "run", "tmp", "root", "mnt"):
        (root / directory).mkdir()
    apt = Apt(arch, work / "apt")
    apt.update()
    debs.mkdir()
    apt.download_with_dependencies(PACKAGES, debs)
    for archive in sorted(debs.glob("*.deb")):
        if not archive.name.startswith(_LEFT_OUT):
            unpack(archive, root)
    [python] = (root / "usr/bin").glob("python3.*[0-9]")
    minor = python.name.removeprefix("python3.")
    site = root / _SITE.format(minor=minor)
    _install(wheels, work, site, BOARDS[arch].machine, minor)
    if sys.version_info[:2] == (3, int(minor)):  # else a start there just takes longer
        for library in (root / f"usr/lib/python3.{minor}", site):
            compileall.compile_dir(library, quiet=2, stripdir=str(root), prependdir="/")
    shutil.rmtree(root / "usr/share/doc", ignore_errors=True)


def _install(wheels: str, work: Path, site: Path, machine: str, minor: str) -> None:
    (work / "wheels").write_text(wheels)
    options = "-q --disable-pip-version-check --require-hashes --no-deps --only-binary=:all: --implementation cp"
    words = [sys.executable, "-m", "pip", "install", *options.split(), "--python-version", f"3.{minor}"]
    words += [word for glibc in (17, 28, 31) for word in ("--platform", f"manylinux_2_{glibc}_{machine}")]
    words += [word for abi in (f"cp3{minor}", "abi3", "none") for word in ("--abi", abi)]
    done = subprocess.run(
        [*words, "--target", site, "-r", work / "wheels"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        why = (done.stderr.strip() or "pip failed").splitlines()[-1]
        raise Lacking(f"wheels for {machine}: {why}: is the network there?")
