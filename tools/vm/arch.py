"""The machines a guest can be: this one's own architecture, or arm64 under emulation (`--arch arm64`).

One table for all that differs. A foreign guest cannot run this machine's programs: its root is a tree of Debian
packages of its own (tools.vm.foreign), into which our modules are shared.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Arch(Enum):
    """By Debian's names."""

    AMD64 = "amd64"
    ARM64 = "arm64"

    @staticmethod
    def here() -> Arch:
        """This machine's, or amd64 where we know of no other guest."""
        return next((arch for arch in Arch if not arch.foreign), Arch.AMD64)

    @property
    def foreign(self) -> bool:
        """Does this machine need emulation for it, and a root of its own?"""
        return BOARDS[self].machine != platform.machine()


@dataclass(frozen=True)
class Board:
    """What QEMU emulates for an architecture. `machine` is uname(2)'s word for it."""

    machine: str
    qemu: str
    qemu_package: str
    arguments: Sequence[str]
    cpu: str  # when emulated
    console: str
    lacks: frozenset[str] = frozenset()  # of tools.vm.images.MODULES


BOARDS = {
    Arch.AMD64: Board("x86_64", "qemu-system-x86_64", "qemu-system-x86", ("-M", "q35"), "max", "ttyS0"),
    Arch.ARM64: Board(
        "aarch64",
        "qemu-system-aarch64",
        "qemu-system-arm",
        ("-M", "virt"),
        "max,pauth-impdef=on",  # the architecture's own pointer signing costs half the speed
        "ttyAMA0",
        frozenset({"crc32c_intel"}),
    ),
}


def emulated(arch: Arch) -> tuple[str, ...]:
    """QEMU's arguments for the processor, without hardware virtualisation."""
    return ("-accel", "tcg,thread=multi,tb-size=512", "-cpu", BOARDS[arch].cpu)


VIRTUALISED = ("-accel", "kvm", "-cpu", "host")
