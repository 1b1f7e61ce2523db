"""An image is never served writable twice, nor while it is mounted: locks, loop devices, and what is behind them."""

import os
from pathlib import Path

import pytest

from common.errors import Exit, Refused
from host.source import file, inuse
from host.source.file import FileSource, open_path
from host.source.inuse import image_behind, mount_point, refuse_in_use

IMAGE_BYTES = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(IMAGE_BYTES))
    return path


@pytest.fixture
def sys(tmp_path: Path, image: Path) -> Path:
    """A sysfs in which /dev/loop3 stands for the image."""
    place = tmp_path / "sys"
    (place / "block" / "loop3" / "loop").mkdir(parents=True)
    (place / "block" / "loop3" / "loop" / "backing_file").write_text(f"{image}\n")
    (place / "block" / "loop3" / "loop3p1").mkdir()
    (place / "dev" / "block").mkdir(parents=True)
    return place


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    file = tmp_path / "mounts"
    file.write_text("proc /proc proc rw 0 0\n/dev/loop30 /other ext4 rw 0 0\n")
    return file


def test_a_second_server_of_the_same_file_is_refused_by_whatever_path_it_comes(image: Path) -> None:
    other = image.with_name("link.img")
    os.link(image, other)
    first = open_path(image, False)
    for path in (image, other):
        for read_only in (False, True):
            with pytest.raises(Refused, match="already served") as caught:
                open_path(path, read_only)
            assert caught.value.status is Exit.BUSY
    first.close()
    open_path(other, False).close()


def test_several_may_serve_it_read_only_and_none_writable_meanwhile(image: Path) -> None:
    readers = [open_path(image, True), open_path(image, True)]
    with pytest.raises(Refused, match="already served"):
        open_path(image, False)
    for reader in readers:
        reader.close()


def test_a_file_that_is_a_loop_device_is_refused_with_what_ends_that(image: Path, sys: Path, mounts: Path) -> None:
    with pytest.raises(Refused, match="in use as /dev/loop3: detach it with 'losetup -d /dev/loop3'"):
        refuse_in_use(image, os.stat(image), sys, mounts)


@pytest.mark.parametrize("device", ["/dev/loop3", "/dev/loop3p1"])
def test_a_file_that_is_mounted_is_refused_with_where(image: Path, sys: Path, mounts: Path, device: str) -> None:
    mounts.write_text(mounts.read_text() + f"{device} /mnt/my\\040disk ext4 rw 0 0\n")
    with pytest.raises(Refused, match=r"mounted on /mnt/my disk: unmount it with 'umount '/mnt/my disk''"):
        refuse_in_use(image, os.stat(image), sys, mounts)


def test_another_file_in_a_loop_device_is_nobodys_business(image: Path, sys: Path, mounts: Path) -> None:
    other = image.with_name("other.img")
    other.write_bytes(b"x")
    refuse_in_use(other, os.stat(other), sys, mounts)
    image.unlink()  # the kernel shows it still; it stands for nothing that has a name
    refuse_in_use(other, os.stat(other), sys, mounts)


def test_a_source_looks_each_time_it_is_opened(
    image: Path, sys: Path, mounts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its role does so too: the image may have been mounted while the source was dead."""
    monkeypatch.setattr(file, "refuse_in_use", lambda path, status: refuse_in_use(path, status, sys, mounts))
    with pytest.raises(Refused, match="in use as /dev/loop3"):
        FileSource(image, False)
    (sys / "block" / "loop3" / "loop" / "backing_file").unlink()
    FileSource(image, False).close()


@pytest.mark.parametrize("part", ["", "loop3p1"])
def test_the_file_behind_a_loop_device_and_its_partitions_is_found(image: Path, sys: Path, part: str) -> None:
    status = os.stat("/dev/null")  # any device number
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    (sys / "dev" / "block" / number).symlink_to(sys / "block" / "loop3" / part)
    assert image_behind(status, sys) == image
    (sys / "block" / "loop3" / "loop" / "backing_file").unlink()
    assert image_behind(status, sys) is None


def test_a_device_whose_name_only_begins_alike_is_another(mounts: Path) -> None:
    assert mount_point("/dev/loop3", mounts) is None
    assert inuse.mount_point("/dev/loop30", mounts) == "/other"
