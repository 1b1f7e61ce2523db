"""The kernels a guest can have: the one that everything is tested on, and a newer one for what only newer ones can.

Pure: which meta package, from which source, and what a kernel's package consists of. Used by tools.vm.images.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
"""Of Debian's package debian-archive-keyring; that of Debian 12 has the keys of Debian 13 too."""


class Kernel(Enum):
    DEBIAN_12 = "6.12"  # 6.1 has no ublk, the cloud flavour no USB
    NEWER = "newer"


@dataclass(frozen=True)
class Supply:
    """`source`: a line for apt, whose lists are then kept apart from this machine's; empty: this machine's own."""

    meta: str  # Debian's meta package for the newest of them, with the architecture put in
    source: str = ""
    built_in: frozenset[str] = frozenset()  # of tools.vm.images.MODULES, what modules.builtin does not tell


SUPPLIES = {
    Kernel.DEBIAN_12: Supply("linux-image-6.12-{arch}"),
    Kernel.NEWER: Supply(
        "linux-image-{arch}",
        f"deb [signed-by={KEYRING}] http://deb.debian.org/debian trixie-backports main\n",
        frozenset({"crc32c_generic", "crc32c_intel"}),  # a library of the kernel's since 6.14
    ),
}


def package_of(depends: str, arch: str) -> str | None:
    """The kernel's package in what `apt-cache depends` tells of a meta package."""
    found = re.search(rf"Depends: <?(linux-image-\d\S+-{arch})\b", depends)
    return found[1] if found else None


def parts(package: str, depends: str) -> Sequence[str]:
    """What to download: `package` itself, or, where `apt-cache depends` tells that it is split, its parts alone.

    Since 6.19 linux-image-VERSION is empty: linux-binary-VERSION has the kernel, and, since 7.2, linux-modules-VERSION
    the modules and linux-base-VERSION the list of what is built in. A part that apt puts in <> is in no package.
    """
    version = re.escape(package.removeprefix("linux-image-"))
    found = re.findall(rf"Depends: (linux-(?:base|binary|modules)-{version})\s", depends + "\n")
    return found if any(name.startswith("linux-binary-") for name in found) else (package,)
