"""Every command of README and docs, run as it is written: here, or by the test that is named; or it is told why not.

Here means a shell with `replug` in its path on a machine of its own: one that has the gadget side up, one the host side
(real processes, the kernels modelled), or one where nothing runs. Names and places of the documents are put in place
of those of the machine. A command that no table below knows fails, so that a new one is thought about.
"""

import ast
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import pytest

import tools
from bus.runtime import Runtime, Side
from tests.native.bench import Bench, await_, bench
from tests.native.disk import ModelDisk
from tests.native.wire import call
from tests.unit.test_docs import DOCS, TOP, blocks
from tools.cli.look import look
from tools.cli.side import take_down
from tools.demo.inside import REPLUG

ROOT = Path(tools.__file__).parent.parent
PAGES = [path for path in (*TOP, *DOCS) if path.name != "commands.md"]
GADGET, HOST, NOTHING = "gadget", "host", "nothing"

# Run here and end by themselves: on which machine.
RUN = {
    "truncate -s 64M disk.img": NOTHING,
    "mkfs.ext4 -q disk.img": NOTHING,
    "sudo replug kill usb": GADGET,
    "replug status": GADGET,
    "replug restart ROLE": GADGET,
    "replug metrics": GADGET,
    "replug log usb": GADGET,
    "replug log usb --format json": GADGET,
    "replug log usb --level debug": GADGET,
    "replug trace --for 5s": GADGET,
    "curl --unix-socket /run/replug/gadget-default/metrics http://replug/metrics": GADGET,
    "sudo replug export resume rootfs": GADGET,
    "sudo replug export fail rootfs": GADGET,
    "replug export fail rootfs": GADGET,
    "sudo replug export limit rootfs 5min": GADGET,
    "sudo replug export limit rootfs none": GADGET,
    "replug host add scratch.img": HOST,
    "sudo replug upgrade --side gadget": GADGET,
    "replug upgrade --side host": HOST,
    "replug host eject": HOST,
    "replug doctor": NOTHING,
    "sudo replug doctor --side gadget": NOTHING,
    "replug doctor --side host": NOTHING,
    "replug config check F": NOTHING,
    "replug config check farm.toml": NOTHING,
    "replug config check /etc/replug/board.toml": NOTHING,
    'eval "$(replug completion)"': NOTHING,
}
EXITS = {command: {0, 4} for command in RUN if "doctor" in command}  # as this machine is
# Run here and go on until Ctrl-C: on which machine, and what is in their output by then.
ENDLESS = {
    "replug host serve disk.img": (NOTHING, "Ctrl-C ends it"),
    "replug status --watch": (GADGET, "healthy"),
    "replug log usb --follow": (GADGET, '"role":"usb"'),
    "replug trace --io 4feb21c0": (GADGET, '"text":"committed"'),
    "replug trace queue.4feb21c0": (GADGET, '"text":"taken"'),
    "replug host serve rootfs.img": (NOTHING, "Ctrl-C ends it"),
    "replug host serve rootfs.img data.img": (NOTHING, "Ctrl-C ends it"),
    "replug host serve rootfs.img --metrics 127.0.0.1:9782": (NOTHING, "Ctrl-C ends it"),
    "replug host serve 'overlay:/var/lib/board7.map?over=rootfs.img'": (NOTHING, "Ctrl-C ends it"),
    "replug host serve 'overlay:/srv/board1.map?over=/srv/rootfs.img'": (NOTHING, "Ctrl-C ends it"),
    "replug host serve --config farm.toml": (NOTHING, "Ctrl-C ends it"),
}


@dataclass(frozen=True)
class Elsewhere:
    """The function of another test, or of a fixture of it, that executes the command, and the words it does it with."""

    file: str
    function: str
    words: tuple[str, ...]


# Run by another test: on a real kernel, or in a terminal.
_UP = Elsewhere("tools/demo/inside.py", "both_sides", ("gadget", "up"))  # what most tests on a real kernel stand on
_DOWN = Elsewhere("tools/demo/inside.py", "_take_down", ("gadget", "down"))
_FILE_SYSTEM = "test_a_file_system_unplugged_in_the_middle_of_a_copy_is_clean_and_trims_what_was_deleted"
_UMOUNT = Elsewhere("tests/e2e/test_file_systems.py", _FILE_SYSTEM, ("umount",))
ELSEWHERE = {
    "replug gadget up": _UP,
    "sudo replug gadget up": _UP,
    "replug gadget down": _DOWN,
    "sudo replug gadget down": _DOWN,
    "sudo mount /dev/ublkb0 /mnt": Elsewhere("tests/e2e/test_file_systems.py", _FILE_SYSTEM, ("mount",)),
    "sudo umount /mnt": _UMOUNT,
    "sudo dd if=/dev/zero of=/mnt/file bs=1M count=32 oflag=direct status=progress": Elsewhere(
        "tools/demo/dd.py", "__init__", ("dd", "if=", "of=", "oflag=direct", "bs=")
    ),
    "sudo replug gadget down --force": Elsewhere(
        "tests/e2e/test_main_path.py",
        "test_forced_down_fails_what_waits_and_leaves_nothing",
        ("gadget", "down", "--force"),
    ),
    "sudo replug gadget up --instance a --udc fe980000.usb": Elsewhere(
        "tests/system/test_several.py", "farm", ("gadget", "up", "--instance")
    ),
    "sudo replug gadget up --instance b --udc fe990000.usb": Elsewhere(
        "tests/system/test_several.py", "farm", ("gadget", "up", "--instance")
    ),
    "sudo replug gadget up --identity fastboot --vid 0x18d1 --pid 0xd00d": Elsewhere(
        "tests/system/test_identity.py",
        "test_a_gadget_that_poses_as_fastboot_is_found_served_and_healed",
        ("gadget", "up", "--identity", "fastboot"),
    ),
    "sudo replug gadget up --ffs-dir /dev/usb-ffs/replug": Elsewhere(
        "tests/system/test_existing_ffs.py", "up", ("gadget", "up", "--ffs-dir")
    ),
    "mount -t functionfs -o no_disconnect=1 replug /dev/usb-ffs/replug": Elsewhere(
        "tests/system/test_existing_ffs.py", "__init__", ("mount", "-t", "functionfs")
    ),
    "replug status --instance board1": Elsewhere(
        "tests/system/test_several.py", "test_status_of_one_is_json", ("status", "--json", "--instance")
    ),
    "sudo replug top": Elsewhere("tests/unit/test_top_screen.py", "__init__", ("tools.cli top",)),
    "replug top": Elsewhere("tests/unit/test_top_screen.py", "__init__", ("tools.cli top",)),
    "sudo umount /dev/ublkb0": _UMOUNT,
    "sudo replug capture bus.pcap": Elsewhere("tests/e2e/test_capture.py", "__init__", ("tools.cli", "capture")),
    "tshark -X lua_script:/usr/share/replug/replug.lua -r bus.pcap -Y 'replug.status > 0'": Elsewhere(
        "tests/unit/test_dissector.py", "packets", ("-r", "-X", "lua_script:", "-Y")
    ),
    "make demo": Elsewhere(
        "tests/system/test_deb.py", "test_the_demo_passes_from_the_installed_package", ("/usr/bin/replug", "demo")
    ),
    "make try IMAGE=rootfs.img": Elsewhere(
        "tests/e2e/test_trial.py",
        "test_an_image_is_served_from_an_overlay_and_read_through_a_kill",
        ("-m", "tools.demo.trial"),
    ),
    "sudo apt install ./dist/replug_*_all.deb": Elsewhere("tests/system/test_deb.py", "installed", ("dpkg", "-i")),
    "sudo systemctl enable --now replug-gadget.service": Elsewhere(
        "tests/system/test_systemd.py", "do", ("systemctl",)
    ),
    "sudo systemctl enable --now replug-host.service": Elsewhere("tests/system/test_systemd.py", "do", ("systemctl",)),
}
# Not run by any test, and why.
NOT_RUN = {
    "sudo replug gadget up --metrics 127.0.0.1:9781": "a port of a gadget side: that of a host side is run here",
    "replug top --instance board2": "top in a terminal is run without an instance",
    "sudo modprobe usbmon": "the guest loads it before its tests",
    "make deb": "what it calls makes the package of tests/unit/test_package_deb.py",
    "make top": "goes on for ever; tests/chaos/test_top_kills.py looks at such screens",
    "wireshark -X lua_script:/usr/share/replug/replug.lua bus.pcap": "wants a display; tshark reads the same script",
    "make test": "it is what runs this",
    "replug host serve /dev/vg/snapshot https://server/rootfs.img random:7?size=64M": "wants LVM and a server: see "
    "tests/unit/test_source_conformance.py and test_source_http.py",
    "echo 'add_dracutmodules+=\" replug \"' | sudo tee /etc/dracut.conf.d/replug.conf": "changes the machine's boot",
    "sudo dracut --force": "changes the machine's boot",
    "sudo rc-update add replug-gadget default": "wants OpenRC as init: see tests/system/test_openrc.py",
    "sudo rc-service replug-gadget start": "wants OpenRC",
    "sudo touch /etc/replug/initramfs": "changes the machine's boot: `make boot` does it in a guest",
    "sudo update-initramfs -u": "changes the machine's boot: `make boot` does it in a guest",
    'sudo adduser "$USER" plugdev': "changes the machine's users",
    "sudo pkill -KILL -f tools.supervise.spawner": "would strike every spawner of this machine: see "
    "tests/chaos/test_native.py",
    "sudo systemctl enable --now replug-gadget@board.service": "only the unit without a name is started by a test",
    "sudo systemctl kill --signal=KILL replug-gadget.service": "wants the installed unit of an older version",
    **{
        command: "what the maker of a gadget does: tests/system/test_existing_ffs.py does it by Python"
        for command in (
            "mkdir /sys/kernel/config/usb_gadget/g1/functions/ffs.replug",
            "ln -s /sys/kernel/config/usb_gadget/g1/functions/ffs.replug /sys/kernel/config/usb_gadget/g1/configs/c.1/",
            "mkdir -p /dev/usb-ffs/replug",
            "echo fe980000.usb > /sys/kernel/config/usb_gadget/g1/UDC",
        )
    },
    **{
        command: "wants a storage server and its tools"
        for command in (
            "pip install fsspec s3fs",
            "replug host serve board1=fsspec:s3://images/rootfs.img",
            "replug host serve 'overlay:/var/lib/board1.map?over=fsspec:s3://images/rootfs.img'",
            "sudo lvcreate --snapshot --size 4G --name board1 vg0/rootfs",
            "sudo replug host serve board1=/dev/vg0/board1",
            "sudo lvremove --yes vg0/board1",
            "sudo rbd map --exclusive rbd/board1",
            "sudo replug host serve board1=/dev/rbd/rbd/board1",
            "sudo modprobe nbd",
            "sudo nbd-client server.example /dev/nbd0 -name board1 -persist -nonetlink",
            "sudo replug host serve board1=/dev/nbd0",
            "sudo iscsiadm -m discovery -t sendtargets -p 192.0.2.7",
            "sudo iscsiadm -m node -T iqn.2024-01.example:board1 -p 192.0.2.7 "
            "-o update -n node.session.timeo.replacement_timeout -v -1",
            "sudo iscsiadm -m node -T iqn.2024-01.example:board1 -p 192.0.2.7 --login",
            "sudo replug host serve board1=/dev/disk/by-path/ip-192.0.2.7:3260-iscsi-iqn.2024-01.example:board1-lun-0",
        )
    },
}


def commands() -> list[str]:
    """Each line of the shell blocks, without its comment."""
    found: list[str] = []
    for path in PAGES:
        for language, block in blocks(path.read_text()):
            if language == "sh" or (language == "" and path.name == "README.md"):
                lines = [re.sub(r"\s+# .*$", "", line).strip() for line in block.replace("\\\n", " ").splitlines()]
                found += [line for line in lines if line and not line.startswith("demo: pass")]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Machines:
    """`base` is where both sides run; each machine sees only its own."""

    base: Path
    work: Path
    export_id: str

    def run(self, command: str, machine: str, output: int | TextIO = subprocess.PIPE) -> "subprocess.Popen[str]":
        runtime = self.work / machine
        environment = {
            **os.environ,
            "PATH": f"{self.work / 'bin'}:{os.environ['PATH']}:/usr/sbin:/sbin",
            "REPLUG_RUNTIME": str(runtime),
        }
        for name, here in {
            "/run/replug/": f"{runtime}/", "/var/lib/": f"{self.work}/", "/srv/": f"{self.work}/",
            "/etc/replug/": f"{self.work}/", "4feb21c0": self.export_id, " ROLE": " usb", "check F": "check farm.toml",
        }.items():  # fmt: skip
            command = command.replace(name, here)
        return subprocess.Popen(
            ["bash", "-euc", command], cwd=self.work, env=environment, text=True,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    work = tmp_path_factory.mktemp("d")
    for name in ("rootfs.img", "data.img", "scratch.img", "board1.img", "board2.img", "data2.img", "phone.img"):
        (work / name).write_bytes(bytes(1 << 20))
    (work / "bin").mkdir()
    for name, text in {"replug": f"cd {work}; exec {shlex.join(REPLUG)}", "sudo": "exec"}.items():
        (work / "bin" / name).write_text(f'#!/bin/sh\nexport PYTHONPATH={ROOT}\n{text} "$@"\n')
        (work / "bin" / name).chmod(0o755)
    tables = {"farm.toml": "docs/how-to/many-gadgets.md", "board.toml": "docs/how-to/run-as-a-service.md"}
    for name, page in tables.items():
        toml = next(text for language, text in blocks((ROOT / page).read_text()) if language == "toml")
        (work / name).write_text(toml.replace("/srv/", f"{work}/"))
    served = work / "served" / "rootfs.img"  # another one: an image is never served twice
    served.parent.mkdir()
    served.write_bytes(bytes(1 << 20))
    with bench([served]) as here:
        _see_apart(here, work)
        export_id = str(look(Runtime(Side.GADGET))["exports"][0]["id"]).removeprefix("0x")
        yield Machines(here.base, work, export_id)


def _see_apart(here: Bench, work: Path) -> None:
    for side in Side:
        (work / side.value).mkdir()
        (work / side.value / f"{side}-default").symlink_to(Runtime(side).root)
    (work / NOTHING).mkdir()


def test_each_command_of_the_documents_is_known_to_one_table_and_no_table_knows_more() -> None:
    tables = (RUN, ENDLESS, ELSEWHERE, NOT_RUN)
    known = [command for table in tables for command in table]
    assert len(known) == len(set(known))
    assert set(commands()) - set(known) == set(), "is not run by any test"
    assert set(known) - set(commands()) == set(), "is in no document any more"


@pytest.mark.parametrize("command", ELSEWHERE)
def test_the_test_that_runs_it_executes_these_words(command: str) -> None:
    """In one call or list of that function, in this order."""
    there = ELSEWHERE[command]
    found = functions(ROOT / there.file).get(there.function, [])
    assert found, f"{there.file} has no function {there.function}"
    assert any(in_order(there.words, texts(node)) for function in found for node in ast.walk(function)), there.words


def functions(file: Path) -> dict[str, list[ast.FunctionDef]]:
    found: dict[str, list[ast.FunctionDef]] = {}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef):
            found.setdefault(node.name, []).append(node)
    return found


def texts(node: ast.AST) -> list[str]:
    """Of a call's arguments or a list's items, and of a text alone; none of anything else."""
    if not isinstance(node, ast.Call | ast.List | ast.Tuple | ast.JoinedStr):
        return []
    return list(_said(node))


def _said(node: ast.AST) -> Iterator[str]:
    """As it is read: depth first."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for child in ast.iter_child_nodes(node):
        yield from _said(child)


def in_order(words: Sequence[str], said: Sequence[str]) -> bool:
    rest = iter(said)
    return all(any(word in text for text in rest) for word in words)


def test_words_in_another_order_or_another_call_would_be_found() -> None:
    [function] = ast.parse("def f():\n run('gadget', 'down')\n run('--force')\n").body
    assert any(in_order(("gadget", "down"), texts(node)) for node in ast.walk(function))
    for words in (("down", "gadget"), ("gadget", "down", "--force")):
        assert not any(in_order(words, texts(node)) for node in ast.walk(function))


def test_every_file_of_a_running_side_is_in_the_reference(machines: Machines) -> None:
    section = (
        (ROOT / "docs/reference/files.md").read_text().partition("## Runtime directory\n")[2].partition("\n## ")[0]
    )
    names = [
        name for row in re.findall(r"^\| (.*?) \|", section, re.MULTILINE) for name in re.findall(r"`([^`]+)`", row)
    ]
    known = [re.compile(re.escape(name).replace("NAME", "[^/]+") + (".*" if name[-1] == "/" else "")) for name in names]
    for side in Side:
        root = Runtime(side).root
        for path in sorted(root.rglob("*")):
            name = str(path.relative_to(root)) + ("/" if path.is_dir() else "")
            below = any(form.startswith(name) for form in names)
            assert below or any(form.fullmatch(name) for form in known), f"{name} is not in docs/reference/files.md"


# Before those that end: one of them ejects every disk, and then nothing is left to be followed.
@pytest.mark.parametrize("command", ENDLESS)
def test_a_command_that_goes_on_ends_at_ctrl_c(machines: Machines, command: str, tmp_path: Path) -> None:
    machine, words = ENDLESS[command]
    if "disk.img" in command:
        (machines.work / "disk.img").write_bytes(bytes(1 << 20))
    said = tmp_path / "said"
    with said.open("w") as file:
        process = machines.run(command, machine, file)
    try:
        output, end = "", time.monotonic() + 40
        while words not in output:
            if "trace" in command:
                read_something()
            output = said.read_text()
            assert process.poll() is None, output
            assert time.monotonic() < end, f"waited for {words!r}: {output}"
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(40) in (0, 130, -signal.SIGINT), output
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        _clear(machines)


def read_something() -> None:
    """From the device that the export has now: one that was failed and resumed has another than at first."""
    disk = ModelDisk(Path(look(Runtime(Side.GADGET))["exports"][0]["device"]))
    disk.read(memoryview(bytearray(4096)), 0)
    disk.close()


@pytest.mark.parametrize("command", RUN)
def test_a_command_that_ends_does_what_the_document_says(machines: Machines, command: str) -> None:
    if command.startswith("mkfs"):
        (machines.work / "disk.img").write_bytes(bytes(64 << 20))
    with parked(machines) if "export fail" in command or "export resume" in command else nullcontext():
        if "export resume" in command:
            assert machines.run("replug export fail rootfs", GADGET).wait(50) == 0
        process = machines.run(command, RUN[command])
        output, _ = process.communicate(timeout=50)
        assert process.returncode in EXITS.get(command, {0}), output
        assert "Traceback" not in output and "usage:" not in output, output
    if "export fail" in command:
        assert machines.run("replug export resume rootfs", GADGET).wait(50) == 0
    if RUN[command] == GADGET:
        await_(lambda: look(Runtime(Side.GADGET))["state"] == "healthy", "the side to be as it was")


@contextmanager
def parked(machines: Machines) -> Iterator[None]:
    """The cable is out: the export waits, and the operator may decide."""
    call("plug", False)
    try:
        await_(lambda: look(Runtime(Side.GADGET))["exports"][0]["state"] == "parked", "the export to be parked")
        yield
    finally:
        call("plug", True)


def _clear(machines: Machines) -> None:
    """What a `host serve` that was killed has left."""
    for root in (machines.work / NOTHING).glob("host-*"):
        take_down(Runtime(Side.HOST, root.name.removeprefix("host-"), machines.work / NOTHING), lambda text: None)
