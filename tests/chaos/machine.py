"""What a run leaves of the machine: the kernel's log, tasks that hang, memory of the sides, how long `down` took."""

from pathlib import Path

from bus.runtime import Side
from tests.chaos.kernel_log import KernelLog, unexpected
from tools.demo import inside


class Machine:
    """Looked at from when a run begins."""

    def __init__(self) -> None:
        self._log = KernelLog()

    def said(self) -> list[str]:
        """Unexpected lines of the kernel's log since it was asked last: whatever struck meanwhile brought them."""
        return [f"dmesg: {line}" for line in unexpected(self._log.new())]

    def complaints(self) -> list[str]:
        """The same, and tasks in D state: nothing of ours runs any more."""
        return self.said() + [f"in D state: {task}" for task in stuck_tasks()]


def stuck_tasks() -> list[str]:
    """Tasks in uninterruptible sleep: `comm pid`. Kernel threads that idle there are not meant (state I)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        name, _, rest = text.partition("(")[2].rpartition(")")
        if rest.split()[0] == "D":
            found.append(f"{name} {stat.parent.name}")
    return found


def memory() -> str:
    """PSS of each side: what it really costs, shared pages counted once."""
    told = []
    for side in Side:
        pss = 0
        for (its_side, _), pid in inside.pids().items():
            if its_side is side:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                pss += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        told.append(f"{side} {pss >> 10} MiB PSS")
    return ", ".join(told)
