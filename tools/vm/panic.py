"""What a guest's kernel said as it died: the first fault, where it was, and who called.

The end of a console is the last of many faults, and the registers of it; this is what a failure is told with. Pure.
Called by tools.vm.parallel.
"""

import re
from dataclasses import dataclass

_FIRST = re.compile(r"BUG: |Oops|general protection fault|double fault|kernel BUG at|stack-protector|invalid opcode")
_STAMP = re.compile(r"^\[ *\d+\.\d+\] ?")
_RIP = re.compile(r"RIP: [0-9a-f]+:(\w+)")
_FRAME = re.compile(r"^ (\w+)\+0x[0-9a-f]+/0x[0-9a-f]+(?: \[(\w+)\])?$")  # a "?" before the name: left from earlier
_FRAMES = 8


@dataclass(frozen=True)
class Panic:
    """`line`: the first fault's. `where`: the function it happened in. `trace`: who called it, innermost first."""

    line: str
    where: str
    trace: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.line}: in {self.where or '?'}, called by {' < '.join(self.trace[:_FRAMES]) or '?'}"


def panic_of(console: str) -> Panic | None:
    """The first fault on a console that ends with a panic; None if the kernel did not die."""
    lines = [_STAMP.sub("", line.rstrip("\r")) for line in console.splitlines()]
    if not any("Kernel panic" in line for line in lines):
        return None
    start = next((number for number, line in enumerate(lines) if _FIRST.search(line)), None)
    if start is None:
        return Panic(next(line for line in lines if "Kernel panic" in line), "", ())
    rest = lines[start:]
    end = next((number for number, line in enumerate(rest) if "end trace" in line), len(rest))
    where = next((found[1] for line in rest[:end] if (found := _RIP.search(line))), "")
    frames = [found for line in rest[:end] if (found := _FRAME.match(line))]
    trace = tuple(f"{frame[1]} [{frame[2]}]" if frame[2] else frame[1] for frame in frames)
    return Panic(rest[0], where, tuple(name for name in trace if name != where))
