"""Packages by apt, downloaded and unpacked, never installed: from this machine's sources, for any architecture.

For a foreign architecture, or a source that is not this machine's, apt gets a state and package lists of its own, so
that this machine's stay as they are. The keys that packages are checked with are the machine's.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import Exit, Refused
from tools.vm.arch import Arch
from tools.vm.kernels import package_of, parts


class Lacking(Refused):
    """This machine lacks something a guest needs; the message names it and the cure (exit status 4)."""

    def __init__(self, text: str) -> None:
        super().__init__(text, Exit.LACKING)


@dataclass(frozen=True)
class Apt:
    """`state`: a directory for lists and downloads of `arch`; None: this machine's own lists.

    `source`: a line of sources.list in place of this machine's; it wants a `state`.
    """

    arch: Arch
    state: Path | None = None
    source: str = ""

    def kernel(self, meta: str) -> str:
        """The kernel package that a meta package stands for, as apt knows it now. Raises Lacking if apt offers none."""
        found = package_of(self._depends(meta), self.arch.value)
        if found is None and self.source:
            raise Lacking(f"{meta}: apt does not offer it from {self.source.strip()}: is the network there?")
        if found is None:
            raise Lacking(
                f"{meta}: apt does not offer it: add Debian 12 and its security archive "
                "(bookworm-security) to apt's sources and run 'apt-get update'"
            )
        return found

    def parts(self, kernel: str) -> Sequence[str]:
        """The packages that this kernel's files are in."""
        return parts(kernel, self._depends(kernel))

    def _depends(self, package: str) -> str:
        words = self._words("apt-cache", "depends", package)
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout

    def update(self) -> None:
        """Fetch the package lists; a failure shows when a package is asked for."""
        if self.state is not None:
            (self.state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
            (self.state / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
            (self.state / "status").touch()
            (self.state / "sources.list").write_text(self.source)
        subprocess.run(self._words("apt-get", "-q", "update"), stdout=subprocess.DEVNULL, check=False)

    def download(self, package: str, where: Path) -> None:
        """That package alone, as a .deb in `where`. Raises Lacking with apt's last word."""
        self._get(package, ["download", package], where)

    def download_with_dependencies(self, packages: Sequence[str], where: Path) -> None:
        """All that `packages` need on a machine with nothing on it, as .deb files in `where`."""
        archives = f"Dir::Cache::archives={where}"
        (where / "partial").mkdir(parents=True, exist_ok=True)
        self._get(packages[0], ["-y", "-o", archives, "--download-only", "install", *packages], where)

    def _get(self, what: str, words: Sequence[str], where: Path) -> None:
        command = self._words("apt-get", "-q", *words)
        done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
        if done.returncode:
            why = (done.stderr.strip() or done.stdout.strip() or "apt failed").splitlines()[-1]
            raise Lacking(f"{what}: cannot be downloaded: {why}: run 'apt-get update' and try again")

    def _words(self, program: str, *words: str) -> list[str]:
        # APT::Sandbox::User: apt's own unprivileged user cannot write where we download to, and says so at length.
        options = ["APT::Sandbox::User=root"]
        if self.state is not None:
            options += [
                *(f"APT::{name}={self.arch.value}" for name in ("Architecture", "Architectures")),
                *(f"Dir::{name}={self.state}{place}" for name, place in _PLACES.items()),
                *("Acquire::Languages=none", "APT::Install-Recommends=false", "Debug::NoLocking=1"),
            ]
        if self.source:
            options += [f"Dir::Etc::sourcelist={self.state}/sources.list", "Dir::Etc::sourceparts=-"]
        return [program, *(word for option in options for word in ("-o", option)), *words]


_PLACES = {"State": "", "State::lists": "/lists", "State::status": "/status", "Cache": "/cache"}


def unpack(archive: Path, root: Path) -> None:
    """A package's files into `root`, whose links from /bin and the like to /usr stay links."""
    files = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE)
    done = subprocess.run(["tar", "-x", "-C", root, "--keep-directory-symlink"], stdin=files.stdout, check=False)
    if files.wait() or done.returncode:
        raise Lacking(f"{archive.name}: cannot be unpacked into {root}: is the disk full? (df {root})")
