"""What `host serve` accepts: names, block sizes and ids of sources, and one line for each that cannot be served."""

import argparse
import fcntl
import os
from pathlib import Path

import pytest

from common import limits
from common.errors import Exit, Refused
from tools.cli import values
from tools.cli.sources import Source, look_at


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return sized(tmp_path / "rootfs.img", 1 << 20)


def sized(path: Path, size_bytes: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size_bytes)
    return path


def one(argument: str, block_size: int | None = None, read_only: bool = False) -> Source:
    (source,) = look_at([argument], block_size, read_only)
    return source


def refusal(argument: str, block_size: int | None = None) -> str:
    with pytest.raises(Refused) as refused:
        one(argument, block_size)
    assert refused.value.status is Exit.BAD_INPUT
    assert "\n" not in str(refused.value)
    return str(refused.value)


# -- names and ids ---------------------------------------------------------------------------------------------------
def test_a_path_is_named_by_its_stem(image: Path) -> None:
    source = one(str(image))
    assert (source.name, source.path, source.size_bytes) == ("rootfs", str(image), 1 << 20)


@pytest.mark.parametrize(("form", "name"), [("file:{}", "rootfs"), ("system={}", "system"), ("a=file:{}", "a")])
def test_other_forms_of_a_source(image: Path, form: str, name: str) -> None:
    assert one(form.format(image)).name == name


def test_a_name_is_made_safe_and_unique(tmp_path: Path) -> None:
    first, second = sized(tmp_path / "my disk (1).img", 4096), sized(tmp_path / "my disk (1).raw", 4096)
    assert [s.name for s in look_at([str(first), str(second)], None, False)] == ["my-disk-1", "my-disk-1-2"]


def test_an_id_is_stable_for_a_path_however_it_is_written(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absolute = one(str(image))
    monkeypatch.chdir(image.parent)
    assert one("./rootfs.img").export_id == absolute.export_id != 0


# -- block sizes -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("size_bytes", "block_size"), [(8192, 4096), (4096 + 512, 512)])
def test_the_block_size_is_4096_where_the_size_allows_else_512(
    tmp_path: Path, size_bytes: int, block_size: int
) -> None:
    assert one(str(sized(tmp_path / "a", size_bytes))).block_size == block_size


@pytest.mark.parametrize("block_size", [512, 1024, 2048, 4096])
def test_block_sizes_that_ublk_takes(image: Path, block_size: int) -> None:
    assert one(str(image), block_size).block_size == block_size


@pytest.mark.parametrize("block_size", [0, 256, 513, 1000, 8192, 65536])
def test_block_sizes_that_ublk_does_not_take(block_size: int) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"^{block_size}: not a power of two in 512..4096: ublk takes"):
        values.block_size(str(block_size))


def test_a_size_that_is_no_multiple_is_refused_with_advice_that_works(tmp_path: Path) -> None:
    path = sized(tmp_path / "a b.img", 1000001)
    text = refusal(str(path))
    assert text.startswith(f"{path}: 1000001 bytes is not a multiple of the block size 512: pad it with 'truncate -s ")
    assert text.endswith(f"truncate -s 1000448 '{path}''")
    os.truncate(path, 1000448)
    assert one(str(path)).size_bytes == 1000448


# -- what cannot be served -------------------------------------------------------------------------------------------
def test_a_missing_file_an_empty_one_a_directory_and_a_pipe(tmp_path: Path) -> None:
    fifo, empty = tmp_path / "fifo", sized(tmp_path / "empty", 0)
    os.mkfifo(fifo)
    assert refusal(str(tmp_path / "no")) == f"{tmp_path}/no: No such file or directory: check the path"
    assert refusal(str(tmp_path)) == f"{tmp_path}: a directory: give a disk image or a block device"
    assert refusal(str(fifo)) == f"{fifo}: no file: give a disk image or a block device"
    assert refusal(str(empty)).startswith(f"{empty}: empty: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_an_unreadable_file(image: Path) -> None:
    image.chmod(0)
    assert refusal(str(image)).startswith(f"{image}: Permission denied: check its permissions")


def test_an_image_that_is_locked_is_served_already(image: Path) -> None:
    with image.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert refusal(str(image)).startswith(f"{image}: served already, or locked by another program: ")
    assert one(str(image))


def test_the_same_image_twice_even_by_a_link(image: Path) -> None:
    link = image.with_name("link")
    link.symlink_to(image)
    with pytest.raises(Refused, match=r": given twice: serve it once$"):
        look_at([str(image), str(link)], None, False)


def test_kinds_of_source_that_are_unknown() -> None:
    assert refusal("ftp://x/y").startswith("ftp://x/y: ftp: is not a kind of source here: ")
    assert refusal("").startswith("a source is empty: ")


def test_as_many_sources_as_exports_and_not_one_more(tmp_path: Path) -> None:
    paths = [str(sized(tmp_path / f"{n}.img", 512)) for n in range(limits.MAX_EXPORTS + 1)]
    sources = look_at(paths[:-1], None, False)
    assert len({s.export_id for s in sources}) == limits.MAX_EXPORTS
    with pytest.raises(Refused, match=f"^{limits.MAX_EXPORTS + 1} sources: more than {limits.MAX_EXPORTS}: "):
        look_at(paths, None, False)


# -- other kinds -----------------------------------------------------------------------------------------------------
def test_a_wrapped_source_is_written_in_full_whatever_directory_it_was_given_in(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(image.parent)
    source = one("mine=fault:switch?error=EIO&over=overlay:map?over=rootfs.img")
    where = image.parent
    assert source.path == f"fault:{where}/switch?error=EIO&over=overlay:{where}/map?over={image}"
    assert (source.name, source.size_bytes, source.read_only) == ("mine", 1 << 20, False)
    assert source.identity


def test_read_only_by_its_own_word_and_the_same_disk_as_without_it(image: Path) -> None:
    word, plain = one(f"file:{image}?ro"), one(str(image))
    assert (word.read_only, plain.read_only, word.export_id) == (True, False, plain.export_id)
    assert one("random:7?size=1M").read_only


def test_an_image_that_others_read_may_be_shared_under_overlays(image: Path) -> None:
    with image.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert one(f"overlay:{image.parent}/map?over={image}").size_bytes == 1 << 20
        assert refusal(str(image)).startswith(f"{image}: served already")
