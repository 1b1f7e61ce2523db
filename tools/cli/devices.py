"""The block devices of a gadget side: what its watchdog remembers, and what the kernel has with our mark.

`gadget down` asks both, as what is remembered may be lost with a file; a device that nobody remembers is removed here.
"""

from bus.runtime import Runtime
from common import limits
from common.errors import Exit, Refused
from gadget.session.kernel import ublk_ids
from gadget.ublk.control import Control
from gadget.ublk.mark import export_of
from tools.supervise.memory import Memory


def devices(runtime: Runtime) -> list[int]:
    """Numbers of the ublk devices of a side, living or dead, remembered or not."""
    return sorted({*remembered(runtime), *marked(runtime.instance)})


def remembered(runtime: Runtime) -> list[int]:
    memory = Memory.load(runtime)
    args = [spec.args for spec in (*memory.wanted, *memory.leaving)]
    return [int(a["ublk_id"]) for a in args if "ublk_id" in a]


def marked(instance: str) -> list[int]:
    """Numbers of the devices that carry this instance's mark, also of those that never had a disk."""
    numbers = sorted(ublk_ids())
    if not numbers:
        return []
    found = []
    with Control(timeout_s=limits.RETIRE_S) as control:
        for number in numbers:
            try:
                info = control.find(number)
            except FileNotFoundError:
                continue  # deleted, and somebody still holds it open
            if info is not None and export_of(info.mark, instance) is not None:
                found.append(number)
    return found


def remove_forgotten(instance: str) -> list[str]:
    """Remove every device with our mark, once no process of the side lives. Returns their names.

    Refused (1) naming the one that does not go: an owner in D state holds its mutex.
    """
    names = []
    for number in marked(instance):
        name = f"/dev/ublkb{number}"
        try:
            with Control(timeout_s=limits.RETIRE_S) as control:
                control.stop(number)
                control.delete_async(number)
        except FileNotFoundError:
            continue  # gone meanwhile is what was wanted
        except OSError as error:  # TimeoutError is one
            why = error.strerror or str(error) or type(error).__name__
            cure = "'replug gadget down' tries again; a restart of the machine removes it"
            raise Refused(f"{name}: is ours and does not go: {why}: {cure}", Exit.FAULT) from None
        names.append(name)
    return names
