"""The Alpine package: its structure, as there is no apk here. Two gzip members, each a tar; checksums of all."""

import gzip
import hashlib
import io
import tarfile
import zlib
from pathlib import Path

import pytest

from tools.package.apk import DEPENDS, build
from tools.package.tree import installed
from tools.version import VERSION

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build(ROOT, tmp_path_factory.mktemp("apk")).read_bytes()


def members(package: bytes) -> list[bytes]:
    """The gzip members, packed."""
    found = []
    while package:
        decoder = zlib.decompressobj(wbits=31)
        decoder.decompress(package)
        assert decoder.eof
        found.append(package[: len(package) - len(decoder.unused_data)])
        package = decoder.unused_data
    return found


def control(package: bytes) -> list[list[str]]:
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(members(package)[0]))) as tar:
        assert tar.getnames() == [".PKGINFO"]
        file = tar.extractfile(".PKGINFO")
        assert file is not None
        return [line.split(" = ", 1) for line in file.read().decode().splitlines() if not line.startswith("#")]


def test_the_control_part_names_version_dependencies_and_the_datas_hash(package: bytes) -> None:
    fields = control(package)
    assert ["pkgver", f"{VERSION}-r0"] in fields and ["arch", "noarch"] in fields
    assert [value for key, value in fields if key == "depend"] == list(DEPENDS)
    assert dict(fields)["datahash"] == hashlib.sha256(members(package)[1]).hexdigest()


def test_both_parts_read_as_one_tar(package: bytes) -> None:
    """As apk reads them: the control part has no end of its own."""
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(package))) as tar:
        names = tar.getnames()
    assert names[0] == ".PKGINFO" and "usr/bin/replug" in names


def test_every_file_is_there_with_its_checksum_and_after_its_directory(package: bytes) -> None:
    seen: set[str] = set()
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(members(package)[1]))) as tar:
        for entry in tar:
            assert str(Path(entry.name).parent) in {*seen, "."}
            seen.add(entry.name)
            if entry.isfile():
                file = tar.extractfile(entry)
                assert file is not None
                assert entry.pax_headers["APK-TOOLS.checksum.SHA1"] == hashlib.sha1(file.read()).hexdigest()
    assert {file.path for file in installed(ROOT, openrc=True)} <= seen


def test_it_has_openrc_scripts_and_no_units(package: bytes) -> None:
    names = {file.path: file for file in installed(ROOT, openrc=True)}
    assert names["etc/init.d/replug-gadget"].executable and names["etc/init.d/replug-host"].executable
    assert not [name for name in names if "systemd" in name and name.startswith("usr/lib/systemd")]


def test_the_same_tree_gives_the_same_bytes(package: bytes, tmp_path: Path) -> None:
    assert build(ROOT, tmp_path).read_bytes() == package
