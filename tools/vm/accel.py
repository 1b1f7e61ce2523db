"""Hardware virtualisation only where a guest really boots with it.

/dev/kvm proves nothing: inside some virtual machines it opens, and the guest then hangs or QEMU dies. So a
guest is booted once with it, under a short limit, and the answer is kept until the machine reboots.
"""

from __future__ import annotations

import json
import os
from enum import Enum
from pathlib import Path

from tools.vm.arch import VIRTUALISED, emulated
from tools.vm.guest import Machine, run
from tools.vm.images import Image, Log, locked
from tools.vm.initrd import Job

PROBE_S = 10.0
"""Far more than a virtualised boot takes (about 1 s), and paid once where it hangs."""


class Accel(Enum):
    """What the user may ask for."""

    AUTO = "auto"
    TCG = "tcg"
    KVM = "kvm"


def choose(asked: Accel, cache: Path, image: Image, log: Log) -> tuple[str, ...]:
    """QEMU's arguments for what was asked for; AUTO probes, or remembers the probe of this boot."""
    if asked is Accel.TCG or image.arch.foreign:
        return emulated(image.arch)
    return VIRTUALISED if asked is Accel.KVM or works(cache, image, log) else emulated(image.arch)


def works(cache: Path, image: Image, log: Log) -> bool:
    """Whether a guest boots with KVM on this machine."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    memory = cache / "accel.json"
    with locked(cache / "accel.lock"):
        known = remembered(memory, boot_id)
        if known is None:
            known = _boots(image)
            log(f"hardware virtualisation {'works' if known else 'does not boot a guest here: emulating'}")
            memory.write_text(json.dumps({"boot_id": boot_id, "kvm": known}))
    return known


def remembered(memory: Path, boot_id: str) -> bool | None:
    """The answer of an earlier probe, if it was made since the machine booted and can be read."""
    try:
        kept = json.loads(memory.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return bool(kept["kvm"]) if isinstance(kept, dict) and kept.get("boot_id") == boot_id else None


def _boots(image: Image) -> bool:
    result = run(image, Job(command=("true",)), Machine(VIRTUALISED), PROBE_S, lambda _: None, lambda _: None)
    return result.exit_code == 0
