"""What the guest is told: the archive it boots from, the command, the controllers, the directories it sees."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.vm.images import Image
from tools.vm.initrd import (
    ALWAYS,
    DRIVEN,
    Job,
    Speed,
    build,
    command_script,
    controller_options,
    cpio,
    hidden_ones,
    job_files,
)

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


def unpack(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """An independent reader of newc, field by field."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701" and at % 4 == 0
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        assert archive[at + 110 + name_size - 1] == 0
        data_at = (at + 110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, archive[data_at : data_at + size])
        at = (data_at + size + 3) // 4 * 4


@given(st.dictionaries(st.text("abc/_.", min_size=1, max_size=9), st.binary(max_size=9), max_size=5))
def test_archive_gives_back_what_was_put_in(files: dict[str, bytes]) -> None:
    entries = [(name, 0o100644, data) for name, data in files.items()]
    assert unpack(cpio(entries)) == {name: (0o100644, data) for name, data in files.items()}


@settings(deadline=None)  # each example runs a shell
@given(st.lists(WORDS, min_size=1, max_size=4), WORDS)
def test_command_keeps_its_words_and_its_environment(words: list[str], value: str) -> None:
    # printf repeats its format for each word; the NUL tells them apart
    job = Job(["/usr/bin/printf", "%s\\0", *words, "end"], environment={"V": value})
    done = subprocess.run(["sh", "-c", command_script(job)], capture_output=True, check=True)
    assert done.stdout == b"".join(word.encode() + b"\0" for word in [*words, "end"])
    told = subprocess.run(
        ["sh", "-c", command_script(Job(["/usr/bin/env", "-0"], environment={"V": value}))],
        capture_output=True,
        check=True,
    )
    assert told.stdout == f"V={value}\0".encode()


def test_command_in_a_missing_directory_ends_with_127(tmp_path: Path) -> None:
    script = command_script(Job(["true"], cwd=str(tmp_path / "gone")))
    assert subprocess.run(["sh", "-c", script], stderr=subprocess.DEVNULL, check=False).returncode == 127


def test_only_directories_under_a_tmpfs_of_the_guest_need_a_mount() -> None:
    assert hidden_ones(["/home/me/project", "/tmp/clone", "/tmp/clone/.venv", "/tmp/clone2", "/run/x"]) == [
        "/run/x",
        "/tmp/clone",
        "/tmp/clone2",
    ]
    assert hidden_ones(["/tmp", "/run"]) == []


@pytest.mark.parametrize(("speed", "flag"), [(Speed.HIGH, "0"), (Speed.SUPER, "1")])
def test_controllers_are_as_many_and_as_fast_as_asked(speed: Speed, flag: str) -> None:
    assert controller_options(3, speed).startswith(f"num=3 is_super_speed={flag}")


def test_files_of_a_run_tell_its_modules_shares_and_wishes() -> None:
    files = job_files(Job(["true"], shares=["/a b", "/c"], dmesg=True), ["netfs", "dummy_hcd"], b"token")
    assert files["modules"].decode().splitlines()[1].startswith("dummy_hcd num=1 ")
    assert files["shares"] == b"share0 /a b\nshare1 /c\n"
    assert files["token"] == b"token" and "dmesg" in files
    assert "dmesg" not in job_files(Job(["true"]), [], b"")


def image(directory: Path) -> Image:
    (directory / "modules").mkdir()
    (directory / "busybox").write_bytes(b"shell")
    names = (*ALWAYS, *DRIVEN, "dummy_hcd")
    for name in names:
        (directory / "modules" / f"{name}.ko").write_bytes(name.encode())
    return Image(directory, "6.12.0", {name: () for name in names})


def test_initrd_holds_shell_scripts_modules_and_command(tmp_path: Path) -> None:
    files = unpack(build(image(tmp_path), Job(["true"]), b"token"))
    assert files["init"][0] == files["bin/busybox"][0] == 0o100755
    assert files["init"][1].startswith(b"#!/bin/busybox sh\n")
    assert files["modules/dummy_hcd.ko"][1] == b"dummy_hcd"
    assert {"vm/command", "vm/session.sh", "vm/token", "dev", "root", "held"} <= set(files)


def test_guest_without_controllers_does_not_load_their_driver(tmp_path: Path) -> None:
    assert "modules/dummy_hcd.ko" not in unpack(build(image(tmp_path), Job(["true"], udcs=0), b"token"))


@pytest.mark.parametrize("script", ["boot.sh", "session.sh"])
def test_scripts_of_process_1_are_valid_shell(script: str) -> None:
    path = Path(__file__).parents[2] / "tools" / "vm" / script
    subprocess.run(["sh", "-n", path], check=True)
