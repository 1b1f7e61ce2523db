"""The RPM package: its structure, as rpm itself reads it. Nothing is installed: Debian has no packages to depend on."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from common.errors import Exit, Refused
from tools.package import rpm
from tools.package.rpm import DEPENDS, build
from tools.package.tree import installed
from tools.version import VERSION

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("rpm"))


def query(package: Path, *words: str) -> list[str]:
    """`rpm -qp`, without a data base and without the user's macros."""
    command = ["rpm", "-qp", "--dbpath", str(package.parent / "db"), *words, str(package)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines()


def test_the_package_tells_its_version_and_is_for_every_machine(package: Path) -> None:
    told = query(package, "--qf", "%{NAME} %{VERSION} %{RELEASE} %{ARCH} %{LICENSE}\n")
    assert told == [f"replug {VERSION} 1 noarch MIT"]
    assert package.name == f"replug-{VERSION}-1.noarch.rpm"


def test_it_needs_what_the_project_imports_and_nothing_that_a_generator_found(package: Path) -> None:
    needs = [line.strip() for line in query(package, "--requires") if not line.startswith("rpmlib(")]
    assert sorted(set(needs)) == sorted({*DEPENDS, "/bin/sh"})  # the shell is its scripts'


def test_every_file_is_there_with_its_bytes_and_its_mode_and_is_roots(package: Path) -> None:
    there = {}
    for line in query(package, "--dump"):
        path, size, _, digest, mode, owner, group, *_ = line.split()
        assert (owner, group) == ("root", "root"), line
        there[path] = (int(size), digest, int(mode, 8))
    wanted = {
        f"/{file.path}": (
            len(file.data), hashlib.sha256(file.data).hexdigest(), 0o100755 if file.executable else 0o100644
        )
        for file in installed(ROOT)
    }  # fmt: skip
    assert {path: told for path, told in there.items() if told[2] & 0o100000} == wanted
    directories = {path for path, told in there.items() if not told[2] & 0o100000}
    assert {"/usr/lib/replug", "/usr/lib/replug/tools/cli"} <= directories, "they would stay behind"
    assert {path for path in directories if "replug" not in path} == set(), "they are the distribution's"


def test_it_has_units_and_no_openrc_scripts(package: Path) -> None:
    names = query(package, "--list")
    assert "/usr/lib/systemd/system/replug-gadget.service" in names
    assert not [name for name in names if name.startswith("/etc/init.d")]


def test_its_scripts_start_and_stop_nothing_and_are_shell(package: Path, tmp_path: Path) -> None:
    text = "\n".join(query(package, "--scripts"))
    parts = text.split("scriptlet (using /bin/sh):")
    named = [part.strip().splitlines()[-1].strip() for part in parts[:-1]]
    assert named == ["postinstall", "preuninstall", "postuninstall"]
    for word in ("systemctl start", "systemctl stop", "systemctl restart", "kill", "gadget down"):
        assert word not in text
    for number, body in enumerate(parts[1:]):
        script = tmp_path / str(number)
        script.write_text("\n".join(line for line in body.splitlines() if line.strip() not in named))
        subprocess.run(["sh", "-n", script], check=True, timeout=10)
    assert '[ "$1" = 0 ]' in parts[2], "an upgrade would remove what the new version has compiled"


def test_the_same_tree_gives_the_same_bytes(package: Path, tmp_path: Path) -> None:
    assert build(ROOT, tmp_path).read_bytes() == package.read_bytes()


def test_a_machine_without_rpmbuild_is_told_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refused) as caught:
        rpm.build(ROOT, tmp_path / "dist")
    assert caught.value.status is Exit.LACKING and "apt-get install rpm" in str(caught.value)
