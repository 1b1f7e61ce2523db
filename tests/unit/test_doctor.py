"""`replug doctor`: facts in, findings out, one lack at a time; and the probe on made-up trees and on this machine.

Shows issue 5, item 3.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.errors import Exit
from tools.cli import main
from tools.doctor.core import MEMLOCK_BYTES, Access, Facts, Level, Module, findings, sides
from tools.doctor.probe import controllers_used, distribution, look, module
from tools.doctor.show import lines

APT = "a kernel of Debian 13"
MODULES = dict.fromkeys(("ublk_drv", "libcomposite", "usb_f_fs", "usbmon"), Module.THERE)
USED = (("fe980000.usb", "g1"),)
GOOD = Facts(
    release="6.12.5-amd64",
    kernel=(6, 12),
    distribution="debian",
    root=True,
    modules=MODULES,
    ublk_control=Access.FINE,
    ublk_features=("USER_RECOVERY", "USER_RECOVERY_REISSUE"),
    configfs_gadgets=True,
    controllers=("fe980000.usb",),
    io_uring="",
    io_uring_disabled=0,
    libusb="libusb-1.0.so.0",
    usb_nodes=3,
    usb_nodes_denied=0,
    memlock_bytes=None,
    nofile=1024,
)


def test_a_machine_that_lacks_nothing_has_no_cures() -> None:
    found = findings(GOOD)
    assert sides(found) == {"gadget": Level.OK, "host": Level.OK}
    assert not any(finding.cure for finding in found)


@pytest.mark.parametrize(
    ("change", "side", "check", "level", "cure"),
    [
        ({"kernel": (6, 5)}, "gadget", "kernel", Level.LACK, APT),
        ({"kernel": (6, 6)}, "gadget", "kernel", Level.WARN, APT),
        (
            {"controllers_used": USED},
            "gadget",
            "UDC",
            Level.LACK,
            "end that gadget: echo | sudo tee",
        ),
        ({"python_missing": ("usb",)}, "host", "Python", Level.LACK, "apt install python3-usb"),
        (
            {"root": False, "udev_rule": False},
            "host",
            "udev rule",
            Level.WARN,
            "sudo cp packaging/udev/70-replug.rules",
        ),
        ({"root": False, "in_plugdev": False}, "host", "udev rule", Level.WARN, 'sudo adduser "$USER" plugdev'),
        ({"modules": MODULES | {"usbmon": Module.ABSENT}}, "host", "usbmon", Level.WARN, "a kernel with"),
        ({"kernel": (5, 99)}, "gadget", "kernel", Level.LACK, APT),
        ({"modules": MODULES | {"ublk_drv": Module.ABSENT}}, "gadget", "ublk_drv", Level.LACK, APT),
        ({"modules": MODULES | {"usb_f_fs": Module.UNKNOWN}}, "gadget", "usb_f_fs", Level.LACK, "in a container"),
        (
            {"modules": MODULES | {"libcomposite": Module.LOADABLE}, "root": False},
            "gadget",
            "libcomposite",
            Level.WARN,
            "sudo modprobe libcomposite",
        ),
        ({"ublk_control": Access.DENIED}, "gadget", "/dev/ublk-control", Level.LACK, "run it with sudo"),
        ({"ublk_control": Access.ABSENT}, "gadget", "/dev/ublk-control", Level.LACK, "mknod it"),
        ({"ublk_features": ("USER_RECOVERY",)}, "gadget", "ublk features", Level.LACK, APT),
        ({"configfs_gadgets": False}, "gadget", "configfs", Level.LACK, "mount -t configfs none /sys/kernel/config"),
        ({"controllers": ()}, "gadget", "UDC", Level.LACK, "switch the USB port to device mode"),
        ({"io_uring": "EPERM", "io_uring_disabled": 2}, "gadget", "io_uring", Level.LACK, "sudo sysctl kernel.io_u"),
        ({"io_uring": "EPERM"}, "gadget", "io_uring", Level.LACK, "in a container: allow io_uring in its seccomp"),
        ({"root": False}, "gadget", "root", Level.LACK, "run it with sudo"),
        ({"libusb": None}, "host", "libusb", Level.LACK, "apt install libusb-1.0-0"),
        ({"usb_nodes": 0}, "host", "/dev/bus/usb", Level.WARN, "plug something in"),
        ({"usb_nodes_denied": 1}, "host", "/dev/bus/usb", Level.WARN, "a udev rule"),
        ({"memlock_bytes": MEMLOCK_BYTES - 1, "root": False}, "host", "memlock", Level.WARN, "a file in /etc/security"),
        ({"nofile": 1023}, "host", "nofile", Level.WARN, "ulimit -n 4096"),
    ],
)
def test_each_lack_is_found_alone_with_what_mends_it(
    change: dict[str, Any], side: str, check: str, level: Level, cure: str
) -> None:
    bad = {(f.side, f.check): f for f in findings(replace(GOOD, **change)) if f.level is not Level.OK}
    assert bad[side, check].level is level
    assert bad[side, check].cure.startswith(cure)
    # the rest is as it was, but for what hangs on being root or holds for both sides
    others = {key for key in bad if key != (side, check)}
    assert others <= {("gadget", "root"), ("gadget", "memlock"), ("gadget", "nofile")}


def test_limits_are_enough_at_their_bound() -> None:
    assert sides(findings(replace(GOOD, memlock_bytes=MEMLOCK_BYTES, kernel=(6, 12), nofile=1024)))["host"] is Level.OK


def test_a_module_that_root_can_load_is_no_lack() -> None:
    loadable = replace(GOOD, modules=MODULES | {"ublk_drv": Module.LOADABLE}, ublk_control=Access.ABSENT)
    assert sides(findings(loadable))["gadget"] is Level.OK


@pytest.mark.parametrize(
    ("family", "cure"),
    [
        ("debian", "apt install libusb-1.0-0"),
        ("fedora", "dnf install libusb1"),
        ("arch", "pacman -S libusb"),
        ("alpine", "apk add libusb"),
        ("", "install libusb 1.0, or replug's extra 'libusb'"),
    ],
)
def test_cures_are_in_the_words_of_the_distribution(family: str, cure: str) -> None:
    assert cure in [finding.cure for finding in findings(replace(GOOD, libusb=None, distribution=family))]


# -- the probe -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "family"),
    [
        ('ID=debian\nVERSION_ID="12"\n', "debian"),
        ('NAME="x"\nID=ubuntu\nID_LIKE=debian\n', "ubuntu"),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"\n', "ubuntu"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "fedora"),
        ("ID=alpine\n", "alpine"),
        ("ID=manjaro\nID_LIKE=arch\n", "arch"),
        ("ID=nixos\n", ""),
    ],
)
def test_the_family_of_a_distribution(tmp_path: Path, text: str, family: str) -> None:
    (tmp_path / "os-release").write_text(text)
    assert distribution(tmp_path / "os-release") == family


def test_no_os_release_is_no_family(tmp_path: Path) -> None:
    assert distribution(tmp_path / "none") == ""


def test_a_module_is_found_wherever_it_is(tmp_path: Path) -> None:
    assert module("ublk_drv", "6.12", tmp_path) is Module.UNKNOWN
    tree = tmp_path / "lib/modules/6.12"
    tree.mkdir(parents=True)
    (tree / "modules.dep").write_text("kernel/other_ublk_drv.ko:\nkernel/a/usb-f-fs.ko.xz: kernel/ublk_drv2.ko\n")
    assert module("ublk_drv", "6.12", tmp_path) is Module.ABSENT
    assert module("usb_f_fs", "6.12", tmp_path) is Module.LOADABLE
    (tree / "modules.builtin").write_text("kernel/drivers/block/ublk_drv.ko\n")
    assert module("ublk_drv", "6.12", tmp_path) is Module.THERE
    (tmp_path / "sys/module/usb_f_fs").mkdir(parents=True)
    assert module("usb_f_fs", "6.12", tmp_path) is Module.THERE


def test_the_command_says_of_this_machine_what_the_core_says(capsys: pytest.CaptureFixture[str]) -> None:
    found = findings(look())
    lacks = Level.LACK in sides(found).values()
    assert main(["doctor", "--json"]) == (Exit.LACKING if lacks else Exit.DONE)
    document = json.loads(capsys.readouterr().out)
    assert (document["version"], document["sides"]) == (1, {s: str(level) for s, level in sides(found).items()})
    assert [(f["check"], f["level"]) for f in document["findings"]] == [(f.check, str(f.level)) for f in found]
    main(["doctor"])
    assert capsys.readouterr().out == "\n".join(lines(found)) + "\n"


def test_only_the_side_asked_about_counts(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor", "--side", "host", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert set(document["sides"]) == {"host"} == {finding["side"] for finding in document["findings"]}
    assert status == (Exit.LACKING if document["sides"]["host"] == "lack" else Exit.DONE)


def test_a_controller_of_another_gadget_is_seen_and_one_of_ours_is_free(tmp_path: Path) -> None:
    for gadget, controller in (("g1", "one.usb"), ("replug-default", "two.usb"), ("g2", "")):
        place = tmp_path / "sys/kernel/config/usb_gadget" / gadget
        place.mkdir(parents=True)
        (place / "UDC").write_text(f"{controller}\n")
    assert controllers_used(tmp_path) == (("one.usb", "g1"),)
    free = replace(GOOD, controllers=("one.usb", "two.usb"), controllers_used=controllers_used(tmp_path))
    assert sides(findings(free))["gadget"] is Level.OK


@pytest.mark.parametrize(("missing", "level"), [(("rich",), Level.WARN), (("zmq", "rich"), Level.LACK)])
def test_a_missing_module_of_python_is_told_with_what_it_is_for(missing: tuple[str, ...], level: Level) -> None:
    found = {f.side: f for f in findings(replace(GOOD, python_missing=missing, distribution="")) if f.check == "Python"}
    assert (found["gadget"].level, found["host"].level) == (level, level)
    assert f"{missing[0]} (for " in found["host"].text
    assert found["host"].cure.endswith(" ".join({"zmq": "pyzmq"}.get(name, name) for name in missing))
