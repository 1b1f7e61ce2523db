"""/dev/disk/by-id/replug-NAME: what the session writes for udev, and what the rule makes of it."""

import re
import subprocess
from pathlib import Path

import pytest

import tools
from common.wire import ExportRecord
from gadget.session.links import directory, safe, write_names
from gadget.session.state import Device

RULES = (Path(tools.__file__).parent.parent / "packaging" / "udev" / "71-replug-gadget.rules").read_text()


def device(ublk_id: int, label: str) -> Device:
    return Device(f"{ublk_id + 16:08x}", ExportRecord(ublk_id + 16, 512, 4096), ublk_id, label=label)


def as_udev_reads(run: Path, kernel_name: str) -> dict[str, str]:
    """The rule's own program, with its place moved to `run`."""
    (program,) = re.findall(r'IMPORT\{program\}="/bin/sh -c \'(.*)\'"', RULES)
    command = program.replace("/run/replug", str(run)).replace("%k", kernel_name)
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True)
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def test_the_rules_program_finds_each_device_of_any_instance(tmp_path: Path) -> None:
    for instance, devices in (("default", (device(0, "rootfs"), device(3, ""))), ("b", (device(1, "scratch"),))):
        root = tmp_path / f"gadget-{instance}"
        root.mkdir()
        write_names(root, devices)
    assert as_udev_reads(tmp_path, "ublkb0") == {"ID_REPLUG_NAME": "rootfs", "ID_REPLUG_EXPORT": "00000010"}
    assert as_udev_reads(tmp_path, "ublkb1")["ID_REPLUG_NAME"] == "scratch"
    assert as_udev_reads(tmp_path, "ublkb3")["ID_REPLUG_NAME"] == "00000013", "a v0 host gives no names"
    assert as_udev_reads(tmp_path, "ublkb9") == {}, "a device of another program"


def test_every_variable_of_the_rule_is_one_that_is_written(tmp_path: Path) -> None:
    write_names(tmp_path, [device(0, "rootfs")])
    written = {line.partition("=")[0] for line in (directory(tmp_path) / "ublkb0").read_text().splitlines()}
    # The others are what blkid found on the disk.
    assert {name for name in re.findall(r"\$env\{(\w+)\}", RULES) if name.startswith("ID_REPLUG_")} == written


def test_a_device_that_is_gone_keeps_no_file(tmp_path: Path) -> None:
    write_names(tmp_path, [device(0, "a"), device(1, "b")])
    write_names(tmp_path, [device(1, "b")])
    assert [path.name for path in directory(tmp_path).iterdir()] == ["ublkb1"]


@pytest.mark.parametrize(
    ("label", "name"), [("a\nID_FS_TYPE=x", "a_ID_FS_TYPE_x"), ("../../x", "_.._x"), ("..", "_"), ("é b", "__b")]
)
def test_a_hosts_name_is_one_line_and_one_name_in_a_directory(label: str, name: str) -> None:
    assert safe(label) == name
