"""`random:SEED?size=N`: bytes that look random and are the same for the same seed in any order of reading.

Each page is the SHAKE-128 of the seed and the page's number. For tests of what is copied from a gadget, and benchmarks.
"""

from hashlib import shake_128

from common.limits import PAGE
from host.source.interface import Can, Geometry, Source


class NoiseSource(Source):
    """Read-only."""

    def __init__(self, seed: str, size_bytes: int) -> None:
        self._seed = seed.encode(errors="surrogateescape")
        self.geometry = Geometry(size_bytes)
        self.identity = f"random {seed} {size_bytes}"
        self.can = Can(0)

    def _read(self, offset: int, into: memoryview) -> None:
        done = 0
        while done < len(into):
            page, start = divmod(offset + done, PAGE)
            part = shake_128(page.to_bytes(8, "little") + self._seed).digest(PAGE)[start : start + len(into) - done]
            into[done : done + len(part)] = part
            done += len(part)

    def close(self) -> None:
        pass
