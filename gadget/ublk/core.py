"""What a queue decides: which ublk request is which, what to send to usb, what to commit. No I/O, no clock.

Identity is the sequence number, never the tag: ublk reissues a request under another tag after a death, and usb may
still hold an answer for the old one. Called by gadget/ublk/role.py and the simulator.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from errno import EIO

from common.errors import WireError
from common.wire import Op


@dataclass(slots=True)
class Taken:
    """A request the kernel gave us under `tag`; its payload lies in arena slot `tag`."""

    sequence: int
    tag: int
    op: Op
    lba: int
    blocks: int
    flags: int = 0  # wire_v1.RequestFlag

    def message(self) -> list[int]:
        return [self.sequence, int(self.op), self.tag, self.lba, self.blocks, self.flags]


@dataclass(slots=True)
class Commit:
    """Tell ublk that `tag` ended with `result`: bytes moved, 0 for FLUSH and DISCARD, or a negative errno."""

    tag: int
    result: int


class QueueCore:
    """The in-flight table of one ublk queue."""

    def __init__(self, block_size: int, depth: int) -> None:
        self._block_size, self._depth = block_size, depth
        self._next = 1
        self._outstanding: dict[int, Taken] = {}
        self._busy_tags: set[int] = set()
        self.completed = 0
        self.unknown = 0

    @property
    def in_flight(self) -> int:
        return len(self._outstanding)

    def take(self, tag: int, op: Op, start_sector: int, sectors: int, flags: int = 0) -> Taken:
        """The kernel asks. Sectors are 512 bytes; the block layer keeps them on our block grid, so else it is a bug."""
        if tag in self._busy_tags or not 0 <= tag < self._depth:
            raise WireError(f"ublk gave tag {tag}, which is in flight or out of range")
        lba, offset = divmod(start_sector * 512, self._block_size)
        blocks, rest = divmod(sectors * 512, self._block_size)
        if op is not Op.FLUSH and (offset or rest):
            raise WireError(f"ublk asks for {sectors} sectors at {start_sector}, off the grid of {self._block_size}")
        taken = Taken(self._next, tag, op, lba, blocks, flags)
        self._next += 1
        self._outstanding[taken.sequence] = taken
        self._busy_tags.add(tag)
        return taken

    def complete(self, sequence: int, status: int) -> Commit | None:
        """usb answers. None if this is not, or no longer, outstanding: an answer is committed once."""
        taken = self._outstanding.pop(sequence, None)
        if taken is None:
            self.unknown += 1
            return None
        self._busy_tags.discard(taken.tag)
        self.completed += 1
        if status:
            return Commit(taken.tag, -status if 0 < status < 4096 else -EIO)
        return Commit(taken.tag, taken.blocks * self._block_size if taken.op <= Op.WRITE else 0)

    def outstanding(self) -> Iterable[Taken]:
        """Everything a new usb must be told, in the order the kernel asked."""
        return tuple(self._outstanding.values())


def parse_completions(body: object) -> list[list[int]]:
    """Body of COMPLETIONS, which is a list of [sequence, status]. Raises WireError."""
    if not isinstance(body, list):
        raise WireError("COMPLETIONS is not a list")
    for item in body:
        if type(item) is not list or len(item) != 2 or type(item[0]) is not int or type(item[1]) is not int:
            raise WireError(f"completion {item!r} is not [sequence, status]")
    return body
