"""One guest seen from outside: what is output and what is not, how QEMU is called, when KVM is believed."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.vm.__main__ import main, parse
from tools.vm.accel import Accel, choose, remembered
from tools.vm.arch import VIRTUALISED, Arch, emulated
from tools.vm.guest import Control, Machine, Stream, qemu_command
from tools.vm.images import Image
from tools.vm.initrd import Job

TOKEN = b"\0end\n"


def fed(chunks: list[bytes]) -> tuple[bytes, Stream]:
    out: list[bytes] = []
    stream = Stream(TOKEN, out.append)
    for chunk in chunks:
        stream.feed(chunk)
    return b"".join(out), stream


@given(st.lists(st.sampled_from([b"a", b"\0", b"\0e", b"nd", b"\n", b"end\n"])), st.integers(1, 4))
def test_all_output_before_the_token_comes_through_however_it_is_cut(parts: list[bytes], step: int) -> None:
    output = b"".join(parts).replace(TOKEN, b"")
    whole = output + TOKEN + b"late"
    told, stream = fed([whole[at : at + step] for at in range(0, len(whole), step)])
    assert stream.complete
    assert told == whole.partition(TOKEN)[0]


def test_output_is_passed_on_as_it_comes() -> None:
    assert fed([b"line\n"])[0] == b"line\n"


def test_beginning_of_a_token_is_held_back_until_the_stream_breaks_off() -> None:
    out: list[bytes] = []
    stream = Stream(TOKEN, out.append)
    stream.feed(b"x\0en")
    assert out == [b"x"]
    stream.flush()
    assert out == [b"x", b"\0en"] and not stream.complete


def test_control_tells_readiness_exit_status_and_kernel_log() -> None:
    control = Control()
    assert control.ready_at is None
    for chunk in (b"rea", b"dy\nexit 1", b"7\n[0.0] Linux\n[0.1] more\n"):
        control.feed(chunk)
    assert control.ready_at is not None
    assert (control.exit_code, control.dmesg) == (17, "[0.0] Linux\n[0.1] more\n")


def test_the_machines_files_are_read_only_and_shares_are_not() -> None:
    image = Image(Path("/cache"), "6.12.0", {})
    fds = {"out": 3, "err": 4, "control": 5}
    words = qemu_command(image, Job(["true"], shares=["/a,b"]), Machine(emulated(Arch.AMD64)), Path("/t"), fds)
    root, share = (word for word in words if word.startswith("local,"))
    assert root.endswith("path=/,mount_tag=root,readonly=on")
    assert share.endswith("path=/a,,b,mount_tag=share0")
    assert "-no-reboot" in words and "panic=-1" in words[words.index("-append") + 1]


def test_a_guest_of_another_architecture_has_its_own_machine_console_and_root() -> None:
    image = Image(Path("/cache"), "6.12.0", {}, Arch.ARM64)
    machine = Machine(emulated(Arch.ARM64), root="/cache/root")
    words = qemu_command(image, Job(["true"]), machine, Path("/t"), {"out": 3, "err": 4, "control": 5})
    assert words[:3] == ["qemu-system-aarch64", "-M", "virt"]
    assert words[words.index("-append") + 1].startswith("console=ttyAMA0 ")
    [root] = (word for word in words if word.startswith("local,"))
    assert root.endswith("path=/cache/root,mount_tag=root,readonly=on")


def test_a_foreign_architecture_is_emulated_whatever_was_asked_for(tmp_path: Path) -> None:
    image = Image(tmp_path, "6.12.0", {}, next(arch for arch in Arch if arch.foreign))
    for asked in Accel:
        assert choose(asked, tmp_path, image, print)[:2] == ("-accel", "tcg,thread=multi,tb-size=512")


def test_probe_of_another_boot_or_a_broken_note_is_no_answer(tmp_path: Path) -> None:
    memory = tmp_path / "accel.json"
    assert remembered(memory, "this boot") is None
    memory.write_text("{")
    assert remembered(memory, "this boot") is None
    memory.write_text(json.dumps({"boot_id": "this boot", "kvm": False}))
    assert remembered(memory, "this boot") is False
    assert remembered(memory, "next boot") is None


def test_what_was_asked_for_is_not_probed(tmp_path: Path) -> None:
    image = Image(tmp_path, "6.12.0", {})
    assert choose(Accel.TCG, tmp_path, image, print) == emulated(Arch.AMD64)
    assert choose(Accel.KVM, tmp_path, image, print) == VIRTUALISED


def test_everything_behind_the_dashes_is_the_command() -> None:
    options, command = parse(["run", "--udcs", "2", "--env", "A=b=c", "--", "ls", "--", "--timeout", "1"])
    assert (options.udcs, options.env, options.timeout) == (2, ["A=b=c"], 300.0)
    assert command == ["ls", "--", "--timeout", "1"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--"], "no command"),
        (["run", "--env", "A", "--", "true"], "'A' is not K=V"),
        (["run", "--udcs", "33", "--", "true"], "invalid choice: 33"),
        (["pytest", "--jobs", "0", "--"], "--jobs must be at least 1"),
        (["fly"], "invalid choice: 'fly'"),
    ],
)
def test_wrong_use_is_told_with_exit_status_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
