"""Objects in remote stores, through fsspec's own memory and local stores; troubles are the test's making."""

import errno
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.errors import Exit, Refused
from host.source.opening import open_source
from host.source.pieces import KEPT, PIECE_BYTES
from host.source.remote import RemoteSource
from host.source.spec import parse

fsspec = pytest.importorskip("fsspec", reason="an extra, and not installed here: pip install 'replug[fsspec]'")

SIZE = 3 * PIECE_BYTES + 512
BYTES = random.Random(6).randbytes(SIZE)
URL = "memory://images/a.img"


class Boto(Exception):
    """What a store's own library raises, and nobody else knows."""


@pytest.fixture
def store() -> Iterator[Any]:
    store = fsspec.filesystem("memory")
    store.pipe_file("/images/a.img", BYTES)
    yield store
    store.store.clear()


def opened() -> RemoteSource:
    return RemoteSource(URL, sleep=lambda _: None)


def read(source: RemoteSource, offset: int = 0, size: int = SIZE) -> bytes:
    into = bytearray(size)
    source.read(offset, memoryview(into))
    return bytes(into)


def error_of(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as raised:
        call()
    return raised.value.errno


def test_an_object_reads_as_itself_in_any_order_and_is_never_written(store: Any) -> None:
    source, rng = opened(), random.Random(1)
    assert (source.geometry.size_bytes, source.read_only) == (SIZE, True)
    for _ in range(40):
        first = rng.randrange(SIZE // 512)
        count = rng.randint(1, SIZE // 512 - first)
        assert read(source, first * 512, count * 512) == BYTES[first * 512 : (first + count) * 512]
    assert error_of(lambda: source.write(0, memoryview(bytes(512)))) == errno.EROFS


def test_what_is_kept_is_bounded_and_not_asked_for_again(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store.pipe_file("/images/a.img", bytes((KEPT + 8) * PIECE_BYTES))
    source, asked, ask = opened(), list[object](), store.cat_file
    monkeypatch.setattr(type(store), "cat_file", lambda self, path, **range_: (asked.append(1), ask(path, **range_))[1])
    for _ in range(2):
        read(source, 0, 4096)
    assert len(asked) == 1
    read(source, 0, (KEPT + 8) * PIECE_BYTES)
    assert len(source._pieces) == KEPT


@pytest.mark.parametrize("size", [SIZE, SIZE - 512, 512], ids=["same size", "shorter", "much shorter"])
def test_a_replaced_object_is_estale_and_never_a_mix(store: Any, size: int) -> None:
    source = opened()
    identity = source.identity
    assert read(source, 0, 512) == BYTES[:512]
    store.pipe_file("/images/a.img", bytes(size))
    assert error_of(lambda: read(source, PIECE_BYTES, 512)) == errno.ESTALE
    assert opened().identity != identity, "a successor of the source must see that it is another disk"


def test_one_replaced_in_the_middle_of_a_range_is_seen_too(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source, ask = opened(), store.cat_file

    def replaced(self: Any, path: str, **range_: int) -> bytes:
        data: bytes = ask(path, **range_)
        self.pipe_file(path, bytes(SIZE))
        return data

    monkeypatch.setattr(type(store), "cat_file", replaced)
    assert error_of(lambda: read(source)) == errno.ESTALE


def test_an_object_that_went_is_enoent(store: Any) -> None:
    source = opened()
    store.rm("/images/a.img")
    assert error_of(lambda: read(source)) == errno.ENOENT
    assert error_of(opened) == errno.ENOENT


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (ConnectionResetError(errno.ECONNRESET, "reset"), errno.ECONNRESET),
        (TimeoutError("slow"), errno.ETIMEDOUT),
        (PermissionError("403"), errno.EACCES),
        (FileNotFoundError("/images/a.img"), errno.ENOENT),
        (OSError("no number"), errno.EIO),
        (Boto("SlowDown"), errno.EIO),
        (ValueError("not what it should be"), errno.EIO),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else errno.errorcode[value],
)
def test_whatever_a_store_raises_is_an_errno_and_its_end_is_noticed(
    store: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, number: int
) -> None:
    source = opened()

    def fail(*_: object, **__: object) -> bytes:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "cat_file", fail)
        assert error_of(lambda: read(source)) == number
    assert read(source) == BYTES


def test_a_passing_trouble_is_not_seen_and_a_short_range_is_one(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source, ask, troubles = opened(), store.cat_file, [2]

    def ill(self: Any, path: str, **range_: int) -> bytes:
        troubles[0] -= 1
        data: bytes = ask(path, **range_)
        return data[:-1] if troubles[0] >= 0 else data

    monkeypatch.setattr(type(store), "cat_file", ill)
    assert read(source) == BYTES and troubles[0] < 0
    troubles[0] = 1000
    assert error_of(lambda: read(opened())) == errno.EIO


def test_a_store_that_tells_no_version_and_what_is_no_object_are_refused(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Refused, match=r"^fsspec:memory://images: is no object of a known size"):
        RemoteSource("memory://images")
    monkeypatch.setattr(type(store), "info", lambda self, path: {"name": path, "size": SIZE, "type": "file"})
    with pytest.raises(Refused, match=f"^fsspec:{URL}: its store tells no version"):
        opened()


def test_a_store_whose_part_is_missing_or_that_nobody_knows_is_refused_with_what_to_do() -> None:
    with pytest.raises(Refused, match=r"^fsspec:nope://a/b: .*Protocol not known") as raised:
        RemoteSource("nope://a/b")
    assert raised.value.status is Exit.BAD_INPUT


def test_a_local_file_by_fsspec_is_pinned_too(tmp_path: Path) -> None:
    image = tmp_path / "a.img"
    image.write_bytes(BYTES)
    source = open_source(parse(f"fsspec:file://{image}"), False)
    assert source.identity == open_source(parse(f"fsspec:file://{image}"), False).identity
    into = bytearray(512)
    os.utime(image, ns=(1, 1))
    assert error_of(lambda: source.read(0, memoryview(into))) == errno.ESTALE


def test_without_fsspec_it_is_refused_as_lacking_and_all_else_works(tmp_path: Path) -> None:
    """In a process of its own: what is imported stays imported."""
    program = (
        "import sys; sys.modules['fsspec'] = None\n"
        "from common.errors import Refused\n"
        "from host.source.opening import open_source\n"
        "from host.source.spec import parse\n"
        "open_source(parse('random:1?size=1M'), False)\n"
        "try: open_source(parse('fsspec:s3://a/b'), False)\n"
        "except Refused as error: print(int(error.status), error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "4 fsspec:s3://a/b: fsspec is not installed: 'pip install fsspec' where replug is\n"
