"""What a source is, from its file on the host to the limits of the gadget's device (issue 4, items 1 and 3)."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from common import limits
from common.wire_v1 import NO_IDENTITY, ExportFlag
from gadget.session.core import configure, exports_of
from gadget.session.state import State
from gadget.ublk.control import DeviceParams
from gadget.ublk.offer import params_for
from host.session.export import Export, power_of_two
from host.source.identity import of_device, of_file
from tools.cli.sources import Source, look_at

EXPORT = Export(7, 512, 1 << 20, "disk", False, True, True, 4096, 1 << 16, "file 1:2:3")
QUEUE = {"block_size": 512, "size_bytes": 1 << 20, "max_io_bytes": limits.MAX_IO_BYTES}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    return image


def served(image: Path, read_only: bool = False) -> Source:
    (source,) = look_at([str(image)], None, read_only)
    return source


# -- the same disk, or another one -----------------------------------------------------------------------------------
def test_a_disk_keeps_its_id_when_its_file_is_moved_or_written(image: Path) -> None:
    before = served(image)
    moved = image.rename(image.with_name("other.img"))
    moved.write_bytes(os.urandom(1 << 20))
    assert (served(moved).export_id, served(moved).identity) == (before.export_id, before.identity)


def test_another_file_in_its_place_is_another_export(image: Path) -> None:
    before = served(image)
    image.rename(image.with_name("kept"))
    image.write_bytes(bytes(1 << 20))
    assert served(image).export_id != before.export_id


def test_a_new_file_with_the_old_inode_number_is_told_by_its_birth(image: Path) -> None:
    with image.open("rb") as file:
        system, inode, birth = of_file(file.fileno()).removeprefix("file ").split(":")
    assert int(inode) == image.stat().st_ino and int(system, 16)
    assert birth and int(birth) > 10**18


def test_a_partition_is_named_by_its_disks_own_name_and_its_number(tmp_path: Path) -> None:
    disk = tmp_path / "devices" / "sda"
    (disk / "sda2").mkdir(parents=True)
    (disk / "sda2" / "partition").write_text("2\n")
    (disk / "wwid").write_text("naa.5000c5\n")
    root = tmp_path / "dev"
    root.mkdir()
    (root / "8:2").symlink_to(disk / "sda2")
    (root / "8:0").symlink_to(disk)
    assert of_device(os.makedev(8, 2), root) == "device naa.5000c5 partition 2"
    assert of_device(os.makedev(8, 0), root) == "device naa.5000c5"
    assert of_device(os.makedev(7, 0), root) == "device 7:0"


# -- what the host announces -----------------------------------------------------------------------------------------
def test_config_carries_what_the_source_is_and_can() -> None:
    wire = EXPORT.announced()
    assert wire.flags == ExportFlag.DISCARD | ExportFlag.WRITE_ZEROES
    assert (wire.physical_block, wire.optimal_io, wire.name) == (4096, 1 << 16, "disk")
    assert wire.identity not in (NO_IDENTITY, replace(EXPORT, identity="file 1:2:4").announced().identity)


@pytest.mark.parametrize(
    ("lacks", "flags"), [("discard", ExportFlag.WRITE_ZEROES), ("write_zeroes", ExportFlag.DISCARD)]
)
def test_an_operation_that_the_source_lacks_is_not_announced(lacks: str, flags: ExportFlag) -> None:
    assert replace(EXPORT, **{lacks: False}).announced().flags == flags


def test_a_read_only_export_announces_nothing_that_writes() -> None:
    assert replace(EXPORT, read_only=True).announced().flags == ExportFlag.READ_ONLY


@pytest.mark.parametrize(
    ("size", "said"), [(0, 0), (4096, 4096), (3 << 16, 1 << 16), (limits.MAX_OPTIMAL_IO * 2, 0), (33_553_920, 512)]
)
def test_sizes_are_announced_as_powers_of_two_within_the_wires_bounds(size: int, said: int) -> None:
    assert power_of_two(size) == said


def test_what_a_file_can_is_what_its_source_says(image: Path) -> None:
    assert served(image).write_zeroes and served(image).optimal_io == image.stat().st_blksize
    read_only = Export.of(served(image, read_only=True).role_args()).announced()
    assert read_only.flags == ExportFlag.READ_ONLY


# -- what the gadget's device offers ---------------------------------------------------------------------------------
def test_the_device_has_the_sources_capabilities_and_sizes() -> None:
    wire = replace(EXPORT, discard=False).announced()
    (device,) = configure(State(1), (wire,), frozenset(), 4096).state.devices
    assert (device.discard, device.write_zeroes) == (False, True)
    assert (device.physical_block, device.optimal_io, device.identity) == (4096, 1 << 16, wire.identity.hex())
    assert State.decode(State(1, (device,)).encode()).devices == (device,)


def test_a_v0_host_which_says_nothing_of_it_gets_what_it_always_got() -> None:
    from common.wire import ConfigExports

    (export,) = exports_of(ConfigExports((EXPORT.record,)).encode(), 0)
    (device,) = configure(State(1), (export,), frozenset(), 4096).state.devices
    assert device.discard and device.write_zeroes and not device.read_only


def test_a_source_without_discard_makes_a_device_without_discard() -> None:
    params = params_for({**QUEUE, "discard": False, "write_zeroes": True})
    assert (params.max_discard_bytes, bool(params.max_write_zeroes_bytes)) == (0, True)
    neither = params_for({**QUEUE, "discard": False, "write_zeroes": False})
    assert (neither.discard_granularity_bytes, neither.max_discard_bytes, neither.max_write_zeroes_bytes) == (0, 0, 0)
    read_only = params_for({**QUEUE, "read_only": True})
    assert read_only.read_only and not read_only.discard_granularity_bytes


def test_physical_and_optimal_sizes_reach_the_drivers_parameters() -> None:
    params = params_for({**QUEUE, "physical_block": 4096, "optimal_io": 1 << 16})
    basic = params.to_abi().basic
    assert (basic.logical_bs_shift, basic.physical_bs_shift, basic.io_min_shift, basic.io_opt_shift) == (9, 12, 12, 16)
    assert DeviceParams.from_abi(params.to_abi()) == params


def test_unknown_sizes_are_those_of_a_block() -> None:
    basic = params_for(QUEUE).to_abi().basic
    assert (basic.physical_bs_shift, basic.io_min_shift, basic.io_opt_shift) == (9, 9, 9)
