"""Space in an arena: extents of whole pages, first fit, neighbours merged when freed. Pure; called by host.usb.core."""

from bisect import bisect

from common import limits


class Extents:
    """Free space of one arena of `size_bytes`."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._free: list[tuple[int, int]] = [(0, size_bytes)]  # (offset, size), by offset, never adjacent
        self._taken: dict[int, int] = {}

    def take(self, size_bytes: int) -> int | None:
        """Offset of `size_bytes` (rounded up to pages) that nobody else has, or None: wait until some is freed."""
        need = -(-size_bytes // limits.PAGE) * limits.PAGE
        for index, (offset, size) in enumerate(self._free):
            if size >= need:
                rest = [(offset + need, size - need)] if size > need else []
                self._free[index : index + 1] = rest
                self._taken[offset] = need
                return offset
        return None

    def free(self, offset: int) -> None:
        """Give back what `take` gave. KeyError if it was not taken."""
        size = self._taken.pop(offset)
        free = self._free
        first = last = bisect(free, (offset, size))
        if first and sum(free[first - 1]) == offset:  # the neighbour before ends where this begins
            first -= 1
            offset, size = free[first][0], free[first][1] + size
        if last < len(free) and free[last][0] == offset + size:
            size += free[last][1]
            last += 1
        free[first:last] = [(offset, size)]

    @property
    def taken_bytes(self) -> int:
        return sum(self._taken.values())
