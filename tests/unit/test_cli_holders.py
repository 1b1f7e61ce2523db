"""Who holds /dev/ublkbN, read from trees like /proc and /sys/block, and from the real ones."""

from pathlib import Path

import pytest

from gadget.session.holders import holders_of, only_probes


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    root = tmp_path / "proc"
    (root / "self-is-no-number").mkdir(parents=True)
    for pid, comm in (("7", "dd"), ("8", "mount")):
        (root / pid / "fd").mkdir(parents=True)
        (root / pid / "comm").write_text(f"{comm}\n")
        (root / pid / "mountinfo").write_text("21 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
    (root / "swaps").write_text("Filename Type Size Used Priority\n/dev/ublkb10 partition 1 0 -2\n")
    return root


@pytest.fixture
def sys_block(tmp_path: Path) -> Path:
    root = tmp_path / "block"
    for name, number in (("ublkb1", "259:1"), ("ublkb1/ublkb1p1", "259:2"), ("ublkb10", "259:10")):
        (root / name / "holders").mkdir(parents=True)
        (root / name / "dev").write_text(f"{number}\n")
    return root


def test_a_device_nobody_uses_has_no_holders(proc: Path, sys_block: Path) -> None:
    assert holders_of(1, proc, sys_block) == []


def test_a_device_that_is_not_there_has_no_holders(proc: Path, sys_block: Path) -> None:
    assert holders_of(2, proc, sys_block) == []


def test_a_mount_of_a_partition_in_any_namespace_is_a_holder(proc: Path, sys_block: Path) -> None:
    (proc / "8" / "mountinfo").write_text("30 1 259:2 / /mnt/my\\040disk rw - ext4 /dev/ublkb1p1 rw\n")
    assert holders_of(1, proc, sys_block) == ["mounted on /mnt/my disk"]


def test_another_block_device_on_top_is_a_holder(proc: Path, sys_block: Path) -> None:
    (sys_block / "ublkb1" / "holders" / "dm-0").touch()
    assert holders_of(1, proc, sys_block) == ["block device dm-0"]


def test_swap_is_a_holder_of_exactly_that_device(proc: Path, sys_block: Path) -> None:
    assert holders_of(10, proc, sys_block) == ["swap on /dev/ublkb10"]


def test_a_regular_file_that_is_open_is_no_holder(proc: Path, sys_block: Path, tmp_path: Path) -> None:
    (proc / "7" / "fd" / "3").symlink_to(tmp_path / "proc" / "swaps")
    assert holders_of(1, proc, sys_block) == []


@pytest.mark.parametrize(
    ("comm", "probe"),
    [("replug:scan", True), ("(udev-worker)", True), ("systemd-udevd", True), ("dd", False), ("udev-like", False)],
)
def test_who_only_probes_a_disk_is_no_holder(comm: str, probe: bool) -> None:
    """With the host away udev's probe waited, and `down` named it as one who must let go."""
    assert only_probes(comm) is probe
