"""What processes have spent so far, from /proc: CPU time and context switches, over all their threads.

schedstat and not stat: nanoseconds instead of ticks of 10 ms, so that a run of a second says something.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from tools.bench.core import Cost


def spent(pid: int) -> Cost:
    """Since its start. All zero for one that is gone."""
    cpu_ns = switches = 0
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            cpu_ns += int((task / "schedstat").read_text().split()[0])
            switches += sum(
                int(line.split()[1]) for line in (task / "status").read_text().splitlines() if "_ctxt_switches" in line
            )
    return Cost(cpu_ns / 1e9, switches)


def all_spent(processes: Mapping[str, int]) -> dict[str, Cost]:
    """By role."""
    return {role: spent(pid) for role, pid in processes.items()}


def since(before: Mapping[str, Cost], after: Mapping[str, Cost]) -> dict[str, Cost]:
    """What was spent in between, by role."""
    return {
        role: Cost(cost.cpu_s - before[role].cpu_s, cost.switches - before[role].switches)
        for role, cost in after.items()
        if role in before
    }


def kernel_threads(*names: str) -> dict[str, int]:
    """Threads of the kernel by name: f_mass_storage and usb-storage work in such."""
    found: dict[str, int] = {}
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            name = comm.read_text().strip()
            if name in names:
                found[name] = int(comm.parent.name)
    return found
