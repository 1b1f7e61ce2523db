"""Which packages a kernel is fetched from, as `apt-cache depends` tells it: whole, split in two, or in three."""

from pathlib import Path

import pytest

from common.errors import Exit
from tools.vm.apt import Apt, Lacking
from tools.vm.arch import Arch
from tools.vm.images import _apt, _places, _prefix
from tools.vm.kernels import SUPPLIES, Kernel, package_of, parts

META = """\
linux-image-amd64
  Depends: linux-base-amd64
  Depends: linux-image-7.3.4+deb13-amd64
  Depends: linux-modules-amd64
"""
SPLIT = """\
linux-image-7.3.4+deb13-amd64
  PreDepends: linux-base
 |Depends: <dracut>
  Depends: linux-base-7.3.4+deb13-amd64
  Depends: linux-binary-7.3.4+deb13-amd64
  Depends: linux-modules-7.3.4+deb13-amd64
  Breaks: <fwupdate>
"""
IN_TWO = """\
linux-image-7.1.13+deb13-amd64
  Depends: <linux-base-7.1.13+deb13-amd64>
  Depends: linux-binary-7.1.13+deb13-amd64
  Depends: <linux-modules-7.1.13+deb13-amd64>
"""
WHOLE = """\
linux-image-6.18.15+deb13-amd64
  PreDepends: linux-base
  Depends: <kmod>
  Depends: <linux-base-6.18.15+deb13-amd64>
  Conflicts: <linux-image-6.18.15+deb13-amd64-unsigned>
"""


def test_a_meta_package_names_the_kernel_of_its_architecture() -> None:
    assert package_of(META, "amd64") == "linux-image-7.3.4+deb13-amd64"
    assert package_of("linux-image-arm64\n  Depends: linux-image-6.12.9+deb12-arm64 \n", "arm64") is not None
    assert package_of(META, "arm64") is None
    assert package_of("", "amd64") is None


@pytest.mark.parametrize(
    ("version", "depends", "names"),
    [
        ("7.3.4+deb13-amd64", SPLIT, ("base", "binary", "modules")),
        ("7.1.13+deb13-amd64", IN_TWO, ("binary",)),
        ("6.18.15+deb13-amd64", WHOLE, ("image",)),
        ("6.12.9+deb12-amd64", "", ("image",)),
    ],
)
def test_a_split_kernel_is_fetched_in_its_parts_and_a_whole_one_as_it_is(
    version: str, depends: str, names: tuple[str, ...]
) -> None:
    assert list(parts(f"linux-image-{version}", depends)) == [f"linux-{name}-{version}" for name in names]


def test_each_kernel_has_a_cache_of_its_own() -> None:
    prefixes = [_prefix(arch, kernel) for arch in Arch for kernel in Kernel]
    assert len(set(prefixes)) == len(prefixes)


def test_a_source_of_kernels_has_lists_of_its_own_and_is_checked_with_debians_keys(tmp_path: Path) -> None:
    assert _apt(Arch.here(), Kernel.DEBIAN_12, tmp_path).state is None
    newer = _apt(Arch.here(), Kernel.NEWER, tmp_path)
    words = " ".join(newer._words("apt-get", "update"))
    assert f"Dir::Etc::sourcelist={tmp_path}/sources.list" in words and "Dir::Etc::sourceparts=-" in words
    assert f"Dir::State::lists={tmp_path}/lists" in words
    assert "signed-by=/usr/share/keyrings/debian-archive-keyring.gpg" in SUPPLIES[Kernel.NEWER].source


def test_a_source_that_offers_no_kernel_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Apt, "_depends", lambda self, package: "")
    with pytest.raises(
        Lacking, match=r"^linux-image-amd64: apt does not offer it from deb .* trixie-backports"
    ) as lack:
        _apt(Arch.AMD64, Kernel.NEWER, tmp_path).kernel("linux-image-amd64")
    assert lack.value.status is Exit.LACKING


def test_a_kernel_lies_in_boot_or_with_its_modules(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for path in (
        old / "boot/vmlinuz-6.12",
        old / "lib/modules/6.12/modules.builtin",
        new / "usr/lib/modules/7.3/vmlinuz",
    ):
        path.parent.mkdir(parents=True)
        path.touch()
    assert _places(old) == ("6.12", old / "boot/vmlinuz-6.12", old / "lib/modules/6.12")
    assert _places(new) == ("7.3", new / "usr/lib/modules/7.3/vmlinuz", new / "usr/lib/modules/7.3")
