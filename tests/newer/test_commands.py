"""UPDATE_SIZE and QUIESCE_DEV of the ublk binding on a driver that has them (Linux 6.16). Run by `make newer`."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from gadget.ublk.control import WISHED, Control
from tests.e2e import ublk_lab
from tests.e2e.ublk_lab import BLOCK, DEV_ID, DISK, PARAMS, SIZE, Lab, opened, pattern, read_at, told
from tests.newer.test_growth import device_bytes, lacks

driver, lab, control = ublk_lab.driver, ublk_lab.lab, ublk_lab.control  # fixtures
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(200), pytest.mark.skipif(bool(lacks()), reason=lacks())]


def test_a_live_disk_grows_under_its_users_and_keeps_its_size_through_recovery(lab: Lab, control: Control) -> None:
    lab.shared.disk[:BLOCK] = pattern(1, BLOCK)
    server = lab.live()
    fd = opened()
    try:
        control.update_size(DEV_ID, 2 * SIZE)
        assert device_bytes(DISK) == os.lseek(fd, 0, os.SEEK_END) == 2 * SIZE
        assert control.get_params(DEV_ID) == replace(PARAMS, size_bytes=2 * SIZE)
        assert read_at(fd, 0, BLOCK) == pattern(1, BLOCK)
        server.kill()
        lab.server().expect("live")
        assert device_bytes(DISK) == 2 * SIZE
        assert read_at(fd, 0, BLOCK) == pattern(1, BLOCK)
    finally:
        os.close(fd)


def test_a_size_that_is_no_whole_sectors_is_refused_here(control: Control) -> None:
    with pytest.raises(ValueError, match="no multiple of 512"):
        control.update_size(DEV_ID, SIZE + 1)


def test_the_driver_offers_both(control: Control) -> None:
    assert control.features() & WISHED == WISHED


def test_a_device_made_without_it_cannot_be_quiesced(lab: Lab, control: Control) -> None:
    lab.live()
    told(errno.EOPNOTSUPP, lambda: control.quiesce(DEV_ID, 1000), f"ublk QUIESCE_DEV of device {DEV_ID}: ")
    assert Path(DISK).exists()
