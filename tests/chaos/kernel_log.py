"""The kernel's log while faults strike: what it may say, each kind of line with its reason, and what it said.

A pattern must match a whole line, so that no name in the middle of one ("ublkb0" in an I/O error) makes it expected.
"""

import errno
import os
import re
from collections.abc import Iterable

_USB = r"usb \d+-\d+: "
_SPEED = r"(?:high-speed|full-speed|SuperSpeed) USB device number \d+ using dummy_(?:hcd|udc)"

EXPECTED = {
    _USB + r"new " + _SPEED: "the cable was put in: a device is enumerated",
    _USB + r"reset " + _SPEED: "we reset the device, or a host's successor did",
    _USB + r"USB disconnect, device number \d+": "the cable was pulled",
    _USB + r"New USB device (?:found,|strings:) .*": "who was enumerated",
    _USB + r"(?:Product|Manufacturer|SerialNumber): .*": "its names",
    _USB + r"authorized to connect": "the fault 'authorized 0 and 1'",
    _USB + r"usbfs: process \d+ \(replug:usb\) did not claim interface 0 before use": (
        "somebody else's reset took its interface away: by its next transfer it finds out"
    ),
    _USB + r"usbfs: USBDEVFS_CONTROL failed cmd replug:usb rqt \d+ rq \d+ len \d+ ret -110": (
        "the gadget's whole side was dead for longer than we wait for an answer on ep0 (CONTROL_TIMEOUT_MS)"
    ),
    _USB + r"usbfs: USBDEVFS_CONTROL failed cmd replug:usb rqt \d+ rq \d+ len \d+ ret -71": (
        "the gadget's whole side died under a request on ep0, and the kernel unbound its gadget"
    ),
    r"usb usb\d+: (?:root hub lost power or was reset|USB disconnect, device number \d+)": "the root hub wakes",
    r"dummy_udc dummy_udc\.\d+: (?:binding|releasing|registering|disabled|enabled) .*": "the controller is bound",
    r"configfs-gadget(?:\.\w+)* gadget\.\d+: .*": "the gadget's core tells of connect and configuration",
    r"gadget\.\d+: high-speed config #\d+: .*": "the gadget is configured",
    r"read (?:descriptors|strings)": "FunctionFS was given ours",
    r"unloading": "FunctionFS goes",
    r"ffs_data_put\(\): freeing": "its last mount or descriptor is gone",
    r"file system registered": "FunctionFS comes",
    r"block ublkb\d+: .*capacity change from \d+ to \d+": "a device comes or goes",
    r" ?ublkb\d+:(?: p\d+)*": "a partition scan",
    r"EXT4-fs \(ublkb\d+(?:p\d+)?\): (?:mounted|unmounting) filesystem .*": "a test mounts it",
    r"Freezing (?:user space processes|remaining freezable tasks).*": "the freezer",
    r"OOM killer (?:disabled|enabled)\.": "the freezer",
    r"Restarting tasks ?\.\.\.": "the freezer",
    r"[Dd]one\.|Restarting tasks ?\.\.\. ?done\.": "the freezer",
    r"Filesystems sync: .*": "the freezer",
    r"PM: suspend (?:entry|exit).*|PM: .*[Ss]uspend debug: Waiting for \d+ .*": "the freezer",
    r"printk: Suspending console.*": "the freezer",
    r"random: crng .*": "the guest's own start",
    r"clocksource: Long readout interval, skipping watchdog check: .*": "the same",
    r"clocksource: timekeeping watchdog on CPU\d+: .* wd-wd read-back delay of \d+ns": "the same",
    r"clocksource: wd-.*-wd read-back delay of \d+ns, clock-skew test skipped!": "the same",
    r"hrtimer: interrupt took \d+ ns": "the emulator waited for a processor of its host",
}
_KNOWN = re.compile("|".join(f"(?:{pattern})" for pattern in EXPECTED))


_GAVE_UP = re.compile(r"Freezing user space processes failed after .* \((\d+) tasks? refusing to freeze.*")
_DUMPED = re.compile(r"task:(.+?)\s+state:")
_OURS = re.compile(r"replug:|ffs-mm")  # comm of a role, and of who holds a usb's memory


def unexpected(lines: Iterable[str]) -> list[str]:
    """Those that are no kind of EXPECTED, nor the stack of a task that the freezer could not freeze.

    Such a task is one of the load, in an uninterruptible wait for the disk whose server is frozen already. A role of
    ours among them is a fault, and so is a stack that anybody else shows.
    """
    found, dumps, inside = [], 0, False
    for line in lines:
        if gave_up := _GAVE_UP.fullmatch(line):
            dumps, inside = int(gave_up[1]), False
        elif dumps and (dumped := _DUMPED.match(line)):
            inside = True
            if _OURS.match(dumped[1]):
                found.append(line)
        elif inside:
            inside = line.strip() != "</TASK>"
            dumps -= not inside
        elif not _KNOWN.fullmatch(line):
            found.append(line)
    return found


def refusing(lines: Iterable[str]) -> tuple[str, ...]:
    """Whom the freezer names as not frozen (kernel/power/process.c, sched_show_task): their comm."""
    found = (_DUMPED.match(line) for line in lines)
    return tuple(match[1] for match in found if match is not None)


def ours(names: Iterable[str]) -> list[str]:
    """Those of them that are processes of replug."""
    return [name for name in names if _OURS.match(name)]


class KernelLog:
    """/dev/kmsg from now on (Documentation/ABI/testing/dev-kmsg)."""

    def __init__(self) -> None:
        self._kmsg = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._kmsg, 0, os.SEEK_END)

    def new(self) -> list[str]:
        """What was said since it was asked last. What was overwritten meanwhile is told as such a line."""
        lines: list[str] = []
        while True:
            try:
                record = os.read(self._kmsg, 8192).decode(errors="replace")
            except BlockingIOError:
                return lines
            except OSError as error:
                if error.errno != errno.EPIPE:
                    raise
                lines.append("lines of the log were overwritten before they were read")
                continue
            lines += text_of(record)

    def close(self) -> None:
        os.close(self._kmsg)


def text_of(record: str) -> list[str]:
    """Of a record of /dev/kmsg: its lines, without its fields in front and its dictionary behind."""
    text = record.partition(";")[2].partition("\n")[0]
    return text.replace("\\x0a", "\n").split("\n")
