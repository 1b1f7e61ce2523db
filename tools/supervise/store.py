"""Descriptors kept for roles, so that what they stand for outlives a role: spawner and twin each hold a copy.

Never a /dev/ublkcN: a copy of that one would keep its device from ever recovering.
"""

import contextlib
import os

MAX_FDS = 256  # all roles together; a gadget's usb keeps five


class Store:
    """By role and name. Owns the descriptors."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[str, int]] = {}

    def keep(self, role: str, names: list[str], fds: list[int]) -> None:
        """Take over `fds`, replacing those of the same names. ValueError if they do not fit, and nothing is taken."""
        held = sum(len(names_of) for names_of in self._kept.values())
        if len(names) != len(fds) or held + len(fds) > MAX_FDS:
            raise ValueError(f"{len(names)} names for {len(fds)} descriptors, {held} held of {MAX_FDS}")
        kept = self._kept.setdefault(role, {})
        for name, fd in zip(names, fds, strict=True):
            old = kept.get(name)
            kept[name] = fd
            if old is not None:
                _close(old)

    def of(self, role: str) -> dict[str, int]:
        return dict(self._kept.get(role, {}))

    def drop(self, role: str) -> bool:
        """Close what is kept for `role`; False if nothing was."""
        kept = self._kept.pop(role, {})
        for fd in kept.values():
            _close(fd)
        return bool(kept)

    def roles(self) -> list[str]:
        return list(self._kept)

    def drop_all(self) -> None:
        for role in self.roles():
            self.drop(role)

    def all_fds(self) -> set[int]:
        return {fd for kept in self._kept.values() for fd in kept.values()}


def _close(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.close(fd)
