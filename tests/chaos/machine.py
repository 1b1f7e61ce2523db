"""What a run leaves of the machine: the kernel's log, tasks that hang, memory of the sides, how long `down` took."""

import re
import subprocess
from pathlib import Path

from bus.runtime import Side
from tools.demo import inside

# Lines of dmesg that a run brings, each with its reason. Any other line is a failure.
EXPECTED = {
    r"usb \d+-\d+(\.\d+)*: ": "the host's core tells of each connect, reset and configuration that we cause",
    r"usb usb\d+: ": "the root hub's sleep and waking",
    r"hub \d+-\d+:1\.0: ": "the root hub's port",
    r"dummy_udc |dummy_hcd |gadget\.\d+: |UDC core: ": "the controller is bound and unbound",
    r"configfs-gadget ": "the gadget's core tells of connect and configuration",
    r"read descriptors|read strings": "FunctionFS was given ours",
    r"file system registered|FunctionFS|ffs_data_put\(\): |^unloading$": "FunctionFS comes and goes",
    r"block ublkb\d+|\bublk": "the driver tells of devices that come and go",
    r"^ ?ublkb\d+: ": "a partition scan",
    r"process '.*' launched '/bin/sh'|Process accounting": "the guest's own start",
    r"Freezing |Filesystems sync|PM: |OOM killer |Restarting tasks|Done\.|printk: Suspending": "the freezer",
    r"suspend debug: |random: crng": "the freezer; the kernel's own",
    r"task:|Call Trace|^\s+(\? )?[\w.]+\+0x|^ <|RIP: |RSP: |R[A-Z0-9]{2}: ": "a task that did not freeze",
    r"systemd-udevd|udevd": "udev's own",
    r"hrtimer: interrupt took": "the emulator waited for a processor of its host",
}
_KNOWN = re.compile("|".join(EXPECTED))


class Machine:
    """Looked at when a run begins, judged when it is over."""

    def __init__(self) -> None:
        self._seen = len(kernel_log())

    def complaints(self) -> list[str]:
        """Unexpected lines of the kernel's log, and tasks in D state. Nothing of ours runs any more."""
        lines = [line for line in kernel_log()[self._seen :] if not _KNOWN.search(line)]
        return [f"dmesg: {line}" for line in lines] + [f"in D state: {task}" for task in stuck_tasks()]


def kernel_log() -> list[str]:
    """Without the times."""
    done = subprocess.run(["dmesg", "--notime"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


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
