"""`replug doctor` on a machine with each lack, made by taking modules, nodes, mounts, rights and libraries away.

In a guest of its own (`make system`), because not all of it is given back. What the doctor says of a lack must also be
true: the command that needs the thing is refused (exit 4) where it is, and where a cure is one command it is run.

Shows issue 5, item 3.
"""

import ctypes
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gadget.usb import udc
from host.usb import library
from tools.demo.inside import REPLUG, replug, wait_for

ROOT = Path(__file__).parents[2]
BUSYBOX = "/run/vm/busybox"
NOBODY = 65534
TREE = Path("/lib/modules") / platform.release()
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


def do(*words: str) -> None:
    subprocess.run([BUSYBOX, *words], check=True, timeout=60)


def doctor(*, as_nobody: bool = False, nofile: int | None = None) -> tuple[int, dict[str, Any]]:
    """Exit status, and the level and cure of each finding by (side, check)."""

    def limit() -> None:
        if nofile is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, nofile))
        if as_nobody:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))

    who = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if as_nobody else {}
    done = subprocess.run(
        [*REPLUG, "doctor", "--json"], cwd=ROOT, capture_output=True, text=True, timeout=60, preexec_fn=limit, **who
    )  # type: ignore[call-overload]
    assert done.stdout, done.stderr
    document = json.loads(done.stdout)
    found = {(f["side"], f["check"]): (f["level"], f["text"], f["cure"]) for f in document["findings"]}
    return done.returncode, {"sides": document["sides"], "found": found}


def lacks(told: tuple[int, dict[str, Any]], side: str, check: str, cure: str) -> None:
    """That this one is a lack with this cure, that the side cannot run, and that the exit status is 4."""
    status, document = told
    level, text, mends = document["found"][side, check]
    assert (status, level, document["sides"][side]) == (4, "lack", "lack"), text
    assert cure in mends, mends
    others = {key for key, (level, _, _) in document["found"].items() if key[0] == side and level == "lack"}
    assert others == {(side, check)}, "and nothing else is blamed"


def only_lack_among(told: tuple[int, dict[str, Any]], side: str, wanted: set[str]) -> None:
    found = told[1]["found"]
    assert {check for (s, check), (level, _, _) in found.items() if (s, level) == (side, "lack")} == wanted


@contextmanager
def hidden(directory: str) -> Iterator[None]:
    """Nothing is in this directory meanwhile."""
    do("mount", "-t", "tmpfs", "none", directory)
    try:
        yield
    finally:
        do("umount", directory)


@contextmanager
def covered(file: Path, text: str) -> Iterator[None]:
    """This is in the file meanwhile."""
    cover = Path("/tmp") / file.name
    cover.write_text(text)
    do("mount", "--bind", str(cover), str(file))
    try:
        yield
    finally:
        do("umount", str(file))


def reachable_by_all(path: Path) -> None:
    """In this guest only, whose files are a copy: a checkout below /root is not for everybody else."""
    for each in (path, *path.parents):
        each.chmod(each.stat().st_mode | 0o5)


def test_the_guest_as_it_is_lacks_nothing() -> None:
    status, document = doctor()
    assert (status, document["sides"]["gadget"]) == (0, "ok"), document
    assert document["sides"]["host"] in ("ok", "warn")


def test_without_rights_every_right_is_named_and_the_host_side_can_still_run() -> None:
    for python in (Path(sys.executable), Path(sys.executable).resolve()):
        reachable_by_all(python)
    status, document = doctor(as_nobody=True)
    found = document["found"]
    assert status == 4
    assert found["gadget", "root"][::2] == ("lack", "run it with sudo")
    assert found["gadget", "/dev/ublk-control"][::2] == ("lack", "run it with sudo")
    assert found["host", "memlock"][0] == "warn" and "LimitMEMLOCK=infinity" in found["host", "memlock"][2]
    assert found["host", "/dev/bus/usb"][0] == "warn" and "70-replug.rules" in found["host", "/dev/bus/usb"][2]
    assert document["sides"]["host"] == "warn", "nothing of it keeps the host side from running"


def test_too_few_open_files() -> None:
    status, document = doctor(nofile=256)
    assert (status, document["found"]["host", "nofile"]) == (
        0, ("warn", "only 256 open files: enough for a few exports", "ulimit -n 4096")
    )  # fmt: skip


@pytest.mark.parametrize("value", ["2"])
def test_io_uring_forbidden_and_its_cure(value: str) -> None:
    setting = Path("/proc/sys/kernel/io_uring_disabled")
    setting.write_text(value)
    told = doctor()
    level, _, cure = told[1]["found"]["gadget", "io_uring"]
    assert (told[0], level) == (4, "lack")
    words = cure.partition(" (")[0].split()
    assert words[:2] == ["sudo", "sysctl"]
    do(*words[1:])
    assert doctor()[1]["found"]["gadget", "io_uring"][0] == "ok"


def test_no_libusb() -> None:
    import libusb_package

    with covered(Path(libusb_package.__file__), "raise ImportError('covered by a test')\n"):
        if library.PATH == "libusb-1.0.so.0":
            ctypes.CDLL(library.PATH)
            maps = Path("/proc/self/maps").read_text().split()
            there = next(word for word in maps if "libusb-1.0.so" in word)
            os.rename(there, there + ".away")
        else:
            there = ""
        try:
            lacks(doctor(), "host", "libusb", "apt install libusb-1.0-0")
            image = Path("/tmp/doctor.img")
            image.write_bytes(bytes(1 << 20))
            done = replug("host", "serve", "--background", str(image))
            assert done.returncode != 0 and "libusb" in done.stderr
        finally:
            if there:
                os.rename(there + ".away", there)


def test_no_usb_devices() -> None:
    with hidden("/dev/bus/usb"):
        assert doctor()[1]["found"]["host", "/dev/bus/usb"][:2] == ("warn", "no USB devices")


def test_no_configfs_and_its_cure() -> None:
    do("umount", "/sys/kernel/config")
    told = doctor()
    lacks(told, "gadget", "configfs", "mount -t configfs none /sys/kernel/config")
    do(*told[1]["found"]["gadget", "configfs"][2].split())
    assert doctor()[0] == 0


def test_no_node_of_ublk_and_its_cure() -> None:
    node = Path("/dev/ublk-control")
    major, minor = Path("/sys/class/misc/ublk-control/dev").read_text().strip().split(":")
    node.unlink()
    try:
        lacks(doctor(), "gadget", "/dev/ublk-control", "mknod it with the numbers in /sys/class/misc/ublk-control/dev")
        assert replug("gadget", "up").returncode == 4
    finally:
        do("mknod", str(node), "c", major, minor)
    assert doctor()[0] == 0


def test_no_usb_device_controller() -> None:
    do("rmmod", "dummy_hcd")
    wait_for("its end", lambda: not udc.controllers())
    lacks(doctor(), "gadget", "UDC", "modprobe dummy_hcd")
    refused = replug("gadget", "up")
    assert refused.returncode == 4 and "no USB device controller" in refused.stderr


def test_no_drivers_at_all_then_loadable_then_not_of_this_kernel() -> None:
    """The guest has no /lib/modules of its own; one is made as depmod writes it."""
    for module in ("ublk_drv", "usb_f_fs"):
        do("rmmod", module)
    subprocess.run([BUSYBOX, "umount", "/sys/kernel/config"], check=False, timeout=60)
    do("rmmod", "libcomposite")
    assert not TREE.exists(), "this is no guest of ours"
    names = {"ublk_drv", "libcomposite", "usb_f_fs"}
    told = doctor()
    only_lack_among(told, "gadget", names | {"UDC"})
    assert "in a container" in told[1]["found"]["gadget", "ublk_drv"][2]
    TREE.mkdir(parents=True)
    files = "".join(f"kernel/drivers/{name.replace('_', '-')}.ko.xz:\n" for name in names)
    (TREE / "modules.dep").write_text(files)
    told = doctor()
    only_lack_among(told, "gadget", {"UDC"})
    assert told[1]["found"]["gadget", "ublk_drv"][1] == "not loaded; 'gadget up' loads it"
    (TREE / "modules.dep").write_text(files.replace("kernel/drivers/ublk-drv.ko.xz:\n", ""))
    told = doctor()
    only_lack_among(told, "gadget", {"UDC", "ublk_drv"})
    assert "linux-image-amd64" in told[1]["found"]["gadget", "ublk_drv"][2]
    assert replug("gadget", "up").returncode == 4
