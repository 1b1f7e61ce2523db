"""A FunctionFS of somebody else's: what is looked at before it is used, and that nothing of its gadget is touched."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from bus.runtime import Runtime, Side
from common.errors import Exit, Gone, Refused
from common.wire import CONTROL_TYPE, Control, Identity
from gadget.usb import mounted, predecessor
from gadget.usb.configfs import GadgetTree
from gadget.usb.handshake import Handshake
from gadget.usb.kept import Peer
from gadget.usb.mounted import MountedFfs
from gadget.usb.transport import Transport
from gadget.usb.tree import tree_of
from tools.cli.gadget import Wish
from tools.cli.parser import parse


def ffs_at(place: Path) -> MountedFfs:
    return MountedFfs(place, GadgetTree("none-such", "", 1, 2, "", "", place.parent / "no mount"))


def mountinfo(tmp_path: Path, *mounts: tuple[Path, str]) -> Path:
    file = tmp_path / "mountinfo"
    escaped = [(str(place).replace(" ", r"\040"), kind) for place, kind in mounts]
    file.write_text("".join(f"36 35 0:52 / {place} rw shared:1 - {kind} source rw\n" for place, kind in escaped))
    return file


def test_only_a_mounted_functionfs_will_do(tmp_path: Path) -> None:
    place = tmp_path / "a place"
    with pytest.raises(Refused, match=f"^{place}: no such directory: name the one where a FunctionFS is mounted$"):
        mounted.need(place)
    place.mkdir()
    with pytest.raises(
        Refused, match="a plain directory, not a FunctionFS: its owner mounts it: 'mount -t functionfs "
    ):
        mounted.need(place, mountinfo(tmp_path, (tmp_path, "functionfs")))
    with pytest.raises(Refused, match="a mount of tmpfs, not a FunctionFS"):
        mounted.need(place, mountinfo(tmp_path, (place, "functionfs"), (place, "tmpfs")))  # the topmost one counts
    mounted.need(place, mountinfo(tmp_path, (place, "tmpfs"), (place, "functionfs")))


def test_who_has_a_file_of_it_open_is_named_unless_it_is_ours(tmp_path: Path) -> None:
    place = tmp_path / "ffs"
    for pid, comm, file in ((7, "adbd", place / "ep0"), (12, "replug:usb", place / "ep4"), (20, "cat", tmp_path / "x")):
        process = tmp_path / "proc" / str(pid)
        (process / "fd").mkdir(parents=True)
        (process / "fd" / "0").symlink_to("/dev/null")
        (process / "fd" / "3").symlink_to(file)
        (process / "comm").write_text(comm + "\n")
    assert mounted.holders(place, {12}, tmp_path / "proc") == ["adbd (pid 7)"]
    assert mounted.holders(place, proc=tmp_path / "proc") == ["adbd (pid 7)", "replug:usb (pid 12)"]


def test_descriptors_that_somebody_has_written_are_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounted, "need", lambda directory: None)
    monkeypatch.setattr(mounted, "_CLOSED_S", 0.05)
    (tmp_path / "ep1").touch()
    with pytest.raises(Refused, match=f"^{tmp_path}: busy: somebody has written descriptors to its ep0: ") as caught:
        ffs_at(tmp_path).create()
    assert caught.value.status is Exit.BUSY


def gadget_with(tmp_path: Path, name: str, function: str, udc: str) -> Path:
    gadget = tmp_path / "usb_gadget" / name
    (gadget / "functions" / f"ffs.{function}").mkdir(parents=True)
    (gadget / "UDC").write_text(udc + "\n")
    return gadget


def test_the_gadget_of_a_mount_is_found_by_its_device(tmp_path: Path) -> None:
    ours, _ = gadget_with(tmp_path, "g1", "source", ""), gadget_with(tmp_path, "g2", "other", "")
    mounts = mountinfo(tmp_path, (tmp_path / "ffs", "functionfs"))
    assert mounted.gadgets_of(tmp_path / "ffs", mounts, tmp_path / "usb_gadget") == [ours]
    assert mounted.gadgets_of(tmp_path / "none", mounts, tmp_path / "usb_gadget") == []


def test_a_gadget_that_stayed_bound_over_closed_files_is_unbound_before_ep0_is_opened(tmp_path: Path) -> None:
    """Seen on 6.12.117: the kernel does it at the opening, and waits there for a mutex that it holds itself."""
    bound, free = gadget_with(tmp_path, "g1", "a", "dummy_udc.0"), gadget_with(tmp_path, "g2", "a", "")
    (free / "UDC").chmod(0o400)
    before = (free / "UDC").stat().st_mtime_ns
    mounted.release([bound, free, tmp_path / "gone"])
    assert (bound / "UDC").read_text() == "\n"
    assert (free / "UDC").stat().st_mtime_ns == before, "one that is not bound is left as it is"


def test_a_dead_owners_files_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounted, "need", lambda directory: None)
    (tmp_path / "ep1").touch()
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        (tmp_path / "ep1").unlink()

    monkeypatch.setattr(time, "sleep", sleep)
    ffs_at(tmp_path).create()
    assert len(looks) == 1


def test_a_descriptor_of_what_was_mounted_there_before_is_told(tmp_path: Path) -> None:
    (tmp_path / "ep0").touch()
    tree = ffs_at(tmp_path)
    with open(tmp_path / "ep0") as ep0:
        assert tree.has(ep0.fileno())
        (tmp_path / "ep0").rename(tmp_path / "before")
        assert not tree.has(ep0.fileno())
        (tmp_path / "ep0").touch()
        assert not tree.has(ep0.fileno())


def test_the_place_and_the_identity_reach_the_role(tmp_path: Path) -> None:
    o = parse(["gadget", "up", "--ffs-dir", "/dev/usb-ffs/../usb-ffs/replug", "--identity", "fastboot"])
    args = Wish(ffs_dir=o.ffs_dir, identity=o.identity).usb_args("")
    assert args == {"ffs_dir": "/dev/usb-ffs/replug", "identity": "fastboot"}
    tree = tree_of(Runtime(Side.GADGET, "i", tmp_path), args)
    assert isinstance(tree, MountedFfs)
    assert (tree.mount_point, tree.identity, tree.left.name) == (
        Path("/dev/usb-ffs/replug"),
        Identity.FASTBOOT,
        "replug-i",
    )


@pytest.mark.parametrize("field", ["udc", "serial", "vendor_id", "product_id"])
def test_what_the_maker_of_the_gadget_says_is_refused_beside_it(field: str) -> None:
    with pytest.raises(Refused, match=r"^--ffs-dir: --[a-z]+ is said by who makes the gadget: leave it out here$"):
        Wish(ffs_dir="/x", **{field: "1"}).place()  # type: ignore[arg-type]


# -- without unbinding -------------------------------------------------------------------------------------------------


def transport(tree: MountedFfs, enabled: bool) -> Transport:
    one = Transport.__new__(Transport)
    one._tree, one._enabled, one.mute, one._peer = tree, enabled, False, Peer.V0
    one._log = SimpleNamespace(error=lambda text: None)  # type: ignore[assignment]
    return one


def test_a_link_that_must_start_over_ends_with_its_process_and_the_successor_is_mute(tmp_path: Path) -> None:
    working = transport(ffs_at(tmp_path), enabled=True)
    with pytest.raises(Gone, match="its gadget is not ours to unbind"):
        working.start_over("a Response that answers nothing")
    successor = transport(ffs_at(tmp_path), enabled=False)
    assert successor.awaits == f"{tmp_path}: waits for its gadget to be bound, and for a host"
    successor.reenumerate()
    assert successor.mute and successor.awaits.startswith("a v0 host must begin anew: pull its cable")


def test_a_mute_gadget_stalls_status_and_only_that() -> None:
    said: list[str] = []

    def setup(control: Control) -> SimpleNamespace:
        return SimpleNamespace(
            request_type=CONTROL_TYPE[control],
            request=control,
            reply=lambda data: said.append("reply"),
            stall=lambda: said.append("stall"),
        )

    handshake, mute = Handshake(), [True]
    handshake.session_id, handshake.mute = 7, lambda: mute[0]
    for control in (Control.STATUS, Control.IDENT):
        handshake.answer(setup(control))  # type: ignore[arg-type]
    mute[0] = False
    handshake.answer(setup(Control.STATUS))  # type: ignore[arg-type]
    assert said == ["stall", "reply", "reply"]


@pytest.mark.parametrize(
    ("peer", "passed", "expected"),
    [
        (Peer.NONE, False, ["end"]),
        (Peer.V1, True, ["halt", "end"]),
        (Peer.V1, False, ["halt", "wait", "end"]),
        (Peer.V0, True, ["halt", "end"]),
        (Peer.V0, False, ["halt", "wait", "end"]),
    ],
)
def test_a_predecessors_transfers_end_without_unbinding(
    peer: Peer, passed: bool, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    did: list[str] = []

    def does(what: str) -> Callable[..., None]:
        return lambda *arguments: did.append(what)

    monkeypatch.setattr(predecessor, "_passed", lambda fd: passed)
    monkeypatch.setattr(predecessor, "time", SimpleNamespace(sleep=does("wait")))
    hold, endpoint = SimpleNamespace(end=does("end")), SimpleNamespace(halt=does("halt"), fd=-1)
    assert predecessor.end([hold], ffs_at(tmp_path), endpoint, peer)  # type: ignore[list-item, arg-type]
    assert did == expected


def test_to_take_it_away_ends_what_we_left_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ep0", "ep4"):
        (tmp_path / name).touch()
    did: list[str] = []
    monkeypatch.setattr(predecessor, "_passed", lambda fd: bool(did.append("passed") or os.fstat(fd)))
    predecessor.remove(ffs_at(tmp_path), [])
    assert did == []
    predecessor.remove(ffs_at(tmp_path), [SimpleNamespace(end=lambda: did.append("end"))])  # type: ignore[list-item]
    assert did == ["passed", "end"]
    assert (tmp_path / "ep0").exists()
