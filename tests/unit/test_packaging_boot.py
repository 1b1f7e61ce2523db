"""What other people's boot runs of ours: the dracut module, by dracut's own installer, and the OpenRC scripts.

The initramfs' tree is made as dracut makes it, and what `gadget up` imports is imported from nothing but that tree.
"""

import os
import platform
import subprocess
from pathlib import Path

import pytest

from tools.package.tree import installed

ROOT = Path(__file__).parents[2]
DEBIAN = ROOT / ".setup/debian"
DRACUT = ROOT / "packaging/dracut/90replug"
INITRAMFS = [ROOT / "packaging/initramfs/hooks/replug", ROOT / "packaging/initramfs/scripts/local-block/replug"]
OPENRC = sorted((ROOT / "packaging/openrc").iterdir())
# What a gadget side is made of, each in a process of its own.
ROLES = ("gadget.usb.role", "gadget.ublk.role", "gadget.session.role", "tools.supervise.spawner",
         "tools.supervise.watchdog", "tools.supervise.twin", "tools.cli.gadget", "tools.cli.commands")  # fmt: skip
_HARNESS = """\
# dracut-init.sh's functions as far as the module calls them; executable files' libraries come, as at dracut's end
inst_multiple() { "$DRACUT_INSTALL" -D "$initdir" -l -a "$@"; }
inst_hook() { echo "hook $1 $2 $(basename "$3")"; [ -e "$3" ]; }
inst_rules() { echo "rules $*"; }
dracut_need_initqueue() { echo "initqueue"; }
dfatal() { echo "fatal: $*"; }
moddir=$1 initdir=$2
. "$moddir/module-setup.sh"
set -e
install
"""


def debian() -> Path:
    if not Path("/usr/bin/python3.11").exists() or not Path("/usr/bin/apt-get").exists():
        pytest.skip("this machine is no Debian 12: it has not the Python that these packages are for")
    subprocess.run([ROOT / "tools/package/debian.sh", DEBIAN], check=True, timeout=300)
    return DEBIAN / "root"


def environment(root: Path) -> dict[str, str]:
    libraries = root / f"usr/lib/{platform.machine()}-linux-gnu"
    return {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": str(root / "usr/lib/python3/dist-packages"),
        "LD_LIBRARY_PATH": str(libraries),
        "DRACUT_INSTALL": str(root / "usr/lib/dracut/dracut-install"),
    }


def installation(stage: Path) -> Path:
    """An installed replug, and in it the dracut module that knows it there; returns the module."""
    for file in installed(ROOT):
        path = stage / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
        path.chmod(0o755 if file.executable else 0o644)
    kmod = stage / "usr/sbin/modprobe"  # which each machine has that has dracut
    kmod.parent.mkdir()
    kmod.write_text("#!/bin/sh\n")
    kmod.chmod(0o755)
    module = stage / "usr/lib/dracut/modules.d/90replug"
    setup = module / "module-setup.sh"
    placed = setup.read_text().replace("/usr/lib/replug", f"{stage}/usr/lib/replug")
    setup.write_text(placed.replace("/usr/bin/replug", f"{stage}/usr/bin/replug"))
    return module


def install(module: Path, tree: Path, variables: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    tree.mkdir()
    command = ["bash", "-c", _HARNESS, "dracut", str(module), str(tree)]
    path = f"{variables['PATH']}:{module.parents[3]}/sbin"
    return subprocess.run(command, env={**variables, "PATH": path}, capture_output=True, text=True, timeout=300)


def inside(tree: Path, variables: dict[str, str], *words: str) -> "subprocess.CompletedProcess[str]":
    """A command that sees nothing but the tree."""
    own = [] if os.geteuid() == 0 else ["unshare", "-r"]
    return subprocess.run([*own, "chroot", tree, *words], env=variables, capture_output=True, text=True, timeout=60)


def test_the_initramfs_has_all_that_the_gadget_side_imports(tmp_path: Path) -> None:
    variables = environment(debian())
    stage, tree = tmp_path / "stage", tmp_path / "tree"
    done = install(installation(stage), tree, variables)
    assert done.returncode == 0, done.stdout + done.stderr
    # dracut waits in its initqueue for the root's device, which nothing but this hook makes
    assert done.stdout.splitlines() == [
        "rules 71-replug-gadget.rules",
        "hook initqueue/settled 10 replug-up.sh",
        "initqueue",
    ]
    library = {**variables, "PYTHONPATH": f"{stage}/usr/lib/replug:{variables['PYTHONPATH']}"}
    for role in ROLES:
        imported = inside(tree, library, "/usr/bin/python3", "-P", "-c", f"import {role}")
        assert imported.returncode == 0, f"{role}: {imported.stderr}"
    version = inside(tree, variables, f"{stage}/usr/bin/replug", "--version")
    assert version.returncode == 0 and version.stdout.startswith("replug "), version.stderr


def test_a_machine_whose_python_lacks_what_is_imported_is_told_and_makes_no_initramfs(tmp_path: Path) -> None:
    variables = environment(debian())
    variables["PYTHONPATH"] = str(tmp_path)
    done = install(installation(tmp_path / "stage"), tmp_path / "tree", variables)
    assert done.returncode != 0 and "fatal: replug" in done.stdout
    assert "replug: python3 lacks zmq: install it" in done.stderr


@pytest.mark.parametrize("script", [*sorted(DRACUT.iterdir()), *INITRAMFS, *OPENRC], ids=lambda path: path.name)
def test_every_script_is_syntax_of_its_shell(script: Path) -> None:
    shell = "bash" if script.read_text().startswith("#!/bin/bash") else "sh"
    done = subprocess.run([shell, "-n", script], capture_output=True, text=True, timeout=10)
    assert (done.returncode, done.stderr) == (0, "")


# -- OpenRC ----------------------------------------------------------------------------------------------------------
_OPENRC = """\
ebegin() { echo "ebegin $*"; }
eend() { echo "eend $1"; return "$1"; }
need() { echo "need $*"; }
after() { echo "after $*"; }
. "$1"
"$2"
"""


def openrc(script: Path, function: str, tmp_path: Path, service: str = "", exit_status: int = 0) -> list[str]:
    """What a function of the script says and executes, with a replug that tells its words and ends so."""
    program = tmp_path / "replug"
    program.write_text(f'#!/bin/sh\necho "replug $*"\nexit {exit_status}\n')
    program.chmod(0o755)
    copy = tmp_path / "script"
    copy.write_text(script.read_text().replace("/usr/bin/replug", str(program)).replace("/etc/replug", str(tmp_path)))
    variables = {"PATH": os.environ["PATH"], "RC_SVCNAME": service or script.name}
    command = ["sh", "-uc", _OPENRC, "openrc-run", str(copy), function]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=20)
    assert done.stderr == "" and done.returncode == exit_status, done.stderr
    return done.stdout.splitlines()


UP = {"replug-gadget": "gadget up --adopt", "replug-host": "host serve --background --adopt"}
DOWN = {"replug-gadget": "gadget down --if-running", "replug-host": "host down --if-running"}


@pytest.mark.parametrize("script", OPENRC, ids=lambda path: path.name)
def test_openrc_starts_and_stops_a_side_by_commands_that_may_be_said_again(script: Path, tmp_path: Path) -> None:
    assert openrc(script, "start", tmp_path)[1:] == [f"replug {UP[script.name]} --instance default", "eend 0"]
    assert openrc(script, "stop", tmp_path)[1:] == [f"replug {DOWN[script.name]} --instance default", "eend 0"]
    assert openrc(script, "stop", tmp_path, exit_status=3)[-1] == "eend 3", "a refused down is no success"


@pytest.mark.parametrize("script", OPENRC, ids=lambda path: path.name)
def test_a_link_to_an_openrc_script_is_another_instance_with_its_own_file(script: Path, tmp_path: Path) -> None:
    (tmp_path / "board.toml").write_text("")
    said = openrc(script, "start", tmp_path, f"{script.name}.board")
    assert said[1] == f"replug {UP[script.name]} --instance board --config {tmp_path}/board.toml"


@pytest.mark.parametrize("script", OPENRC, ids=lambda path: path.name)
def test_openrc_may_ask_for_the_status_of_a_side_that_is_down(script: Path, tmp_path: Path) -> None:
    """openrc-run refuses what stands in extra_started_commands while the service is stopped."""
    rules = (debian() / "lib/rc/sh/openrc-run.sh").read_text()
    assert "for _cmd in $extra_started_commands" in rules and "as it has not been started" in rules
    assert "extra_started_commands" not in script.read_text()
    side = script.name.removeprefix("replug-")
    assert openrc(script, "status", tmp_path, exit_status=5) == [f"replug status --side {side} --instance default"]


# -- what brings the gadget side up in an initramfs -------------------------------------------------------------------
_DRACUT_TURN = """\
getarg() { sed -n 's/.*rd.replug=\\([^ ]*\\).*/\\1/p' "$CMDLINE"; }
modprobe() { :; }
warn() { echo "warn $*"; }
set -- of the caller
. "$SCRIPT"
[ "$*" = "of the caller" ] || echo "the caller's words are gone"
"""
_TOOLS_TURN = """\
modprobe() { :; }
log_warning_msg() { echo "warn $*"; }
sleep() { echo "slept"; touch "$WORK/device"; }
resolve_device() { [ "$1" = UUID=1 ] && [ -e "$WORK/device" ]; }
set -- UUID=1
. "$SCRIPT"
"""


class Initramfs:
    """One of the two scripts, in a world of its own: a command line, controllers, and a replug that ends as told."""

    def __init__(self, maker: str, work: Path) -> None:
        script, self._turn = {
            "dracut": (DRACUT / "replug-up.sh", _DRACUT_TURN),
            "initramfs-tools": (INITRAMFS[1], _TOOLS_TURN),
        }[maker]
        self.work, self.controllers = work, work / "udc"
        program = work / "replug"
        program.write_text('#!/bin/sh\necho "replug $* storage=$REPLUG_ROOT_STORAGE"\nexit "$EXIT"\n')
        program.chmod(0o755)
        text = (
            script.read_text().replace("/usr/bin/replug", str(program)).replace("/sys/class/udc", str(self.controllers))
        )
        text = text.replace("/run/replug-up", str(work / "is-up")).replace("/proc/cmdline", str(work / "cmdline"))
        (work / "script").write_text(text.replace(". /scripts/functions\n", ""))

    def turn(self, cmdline: str, exit_status: int = 0) -> list[str]:
        """One look while the root's device is waited for."""
        (self.work / "cmdline").write_text(cmdline + "\n")
        variables = {"PATH": os.environ["PATH"], "SCRIPT": str(self.work / "script"), "EXIT": str(exit_status)}
        variables |= {"CMDLINE": str(self.work / "cmdline"), "WORK": str(self.work)}
        done = subprocess.run(["sh", "-c", self._turn], env=variables, capture_output=True, text=True, timeout=20)
        assert done.stderr == "", done.stderr
        return done.stdout.splitlines()


MAKERS = pytest.mark.parametrize("maker", ["dracut", "initramfs-tools"])
UP_STORAGE = "replug gadget up --adopt {}storage=1"


@MAKERS
def test_the_gadget_side_is_brought_up_once_there_is_a_controller_and_only_once(maker: str, tmp_path: Path) -> None:
    initramfs = Initramfs(maker, tmp_path)
    assert initramfs.turn("quiet rd.replug=1 ro") == [], "there is no controller yet"
    (initramfs.controllers / "one").mkdir(parents=True)
    assert initramfs.turn("quiet rd.replug=1 ro") == [UP_STORAGE.format("")]
    assert initramfs.turn("quiet rd.replug=1 ro") == []


@MAKERS
def test_a_gadget_side_that_does_not_come_up_is_tried_again(maker: str, tmp_path: Path) -> None:
    initramfs = Initramfs(maker, tmp_path)
    (initramfs.controllers / "one").mkdir(parents=True)
    first = initramfs.turn("rd.replug=fe980000.usb", exit_status=1)
    assert first[0] == UP_STORAGE.format("--udc fe980000.usb ") and first[1].startswith("warn replug: gadget up failed")
    assert initramfs.turn("rd.replug=fe980000.usb") == [UP_STORAGE.format("--udc fe980000.usb ")]


@MAKERS
def test_a_start_that_does_not_ask_for_replug_is_left_alone(maker: str, tmp_path: Path) -> None:
    initramfs = Initramfs(maker, tmp_path)
    (initramfs.controllers / "one").mkdir(parents=True)
    assert initramfs.turn("root=/dev/sda1 quiet") == []


def test_rootwait_waits_for_the_host_as_long_as_it_takes_and_says_so(tmp_path: Path) -> None:
    """initramfs-tools would give up after 30 s; dracut has rd.retry= for that."""
    initramfs = Initramfs("initramfs-tools", tmp_path)
    (initramfs.controllers / "one").mkdir(parents=True)
    said = initramfs.turn("rd.replug=1 rootwait")
    assert said == [UP_STORAGE.format(""), "warn replug: waiting for a host that serves UUID=1, since 0s", "slept"]
    assert initramfs.turn("rd.replug=1 rootwait") == []
