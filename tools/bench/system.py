"""What can be measured side by side: a block device that some system makes, and the processes it costs.

Another system hangs here by one function that brings it up, yields `Ready`, and takes it away again, and one line in
SYSTEMS of tools.bench.run. Refused says why it cannot be had on this machine: it is then left out, and that is told.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import Exit, Refused

DISK_BYTES = 64 << 20  # in memory, on every system: more than any cache of a controller, little of a guest's
_WAIT_S = 90.0


@dataclass(frozen=True)
class Ready:
    """`processes`: pid by role, asked before and after each load."""

    device: Path
    processes: Callable[[], Mapping[str, int]]


System = Callable[[Path], AbstractContextManager[Ready]]
"""Given a directory in memory for its file."""


def await_(what: str, condition: Callable[[], Any], limit_s: float = _WAIT_S) -> Any:
    """Poll: sysfs announces nothing."""
    end = time.monotonic() + limit_s
    while not (value := condition()):
        if time.monotonic() > end:
            raise Refused(f"bench: waited {limit_s:g} s for {what}", Exit.FAULT)
        time.sleep(0.02)
    return value


def disk_file(place: Path, name: str, size_bytes: int = DISK_BYTES) -> Path:
    """A file without holes."""
    path = place / name
    with path.open("wb") as file:
        for _ in range(size_bytes >> 20):
            file.write(bytes(1 << 20))
    return path
