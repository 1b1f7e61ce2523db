"""Both sides up in a directory of their own, over a model process; down again, and nothing of them is left."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bus.control import ask
from bus.runtime import Runtime, Side
from common.errors import ReplugError
from common.log import human
from tests.chaos import events
from tests.chaos.workload import Violation
from tests.native import wire
from tests.native.disk import ModelCable
from tools.cli.side import bring_up, take_down
from tools.cli.sources import look_at
from tools.supervise.launch import all_living, await_deaths, kill
from tools.supervise.plan import Plan, gadget_plan, host_plan

_ENTRIES = {
    "gadget.usb.role": "tests.native.gadget_usb",
    "gadget.ublk.role": "tests.native.gadget_queue",
    "gadget.session.role": "tests.native.gadget_session",
    "host.usb.role": "tests.native.host_usb",
    "host.session.role": "tests.native.host_session",
}
_LIMIT_S = 20.0  # for anything of a start


@dataclass
class Bench:
    """`devices` are named as the product names them, in the order of the files; they are the model's."""

    base: Path
    plans: dict[Side, Plan]
    devices: list[Path] = field(default_factory=list)
    started: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def bring_up(self, side: Side) -> None:
        """A side, fresh or after its death as a whole: what is left of it then is ended first, as `host serve` does."""
        left = all_living(Runtime(side))
        kill(left)
        await_deaths(left, 5.0)
        self.started.append(bring_up(self.plans[side], Runtime(side)))

    def complaints(self) -> list[str]:
        """What the models saw that no kernel would: a double completion, say."""
        found: list[str] = wire.call("complaints")
        return found

    def last_words(self) -> str:
        """For a failure: the ends of all logs, and what the model did last."""
        lines = list(wire.call("trace"))[-40:]
        for path in sorted(self.base.glob("*-default/log/*")):
            lines += [
                f"{path.parent.parent.name}/{path.name}: {human(line)}" for line in path.read_text().splitlines()[-25:]
            ]
        return "\n".join(lines)


@contextmanager
def bench(
    files: list[Path], seed: int = 0, v0: bool = False, said: Mapping[Path, str] = MappingProxyType({})
) -> Iterator[Bench]:
    """Up, and at the end down. What this process calls the default place of a side is in between the bench's.

    `said`: how `host serve` is told of a file, where that is more than its path (another source over it).
    """
    with ExitStack() as stack:
        base = Path(tempfile.mkdtemp(prefix="rpn-"))
        stack.callback(shutil.rmtree, base, ignore_errors=True)
        _put_in_place(stack, base)
        machine = subprocess.Popen(
            [sys.executable, "-m", "tests.native.model", os.fspath(base / wire.NAME), str(seed), "01"[v0]],
            cwd=Path(__file__).parent.parent.parent,
        )
        stack.callback(_end, machine)
        await_(lambda: (base / wire.NAME).exists(), "the model process")
        here = Bench(base, {Side.GADGET: _native(gadget_plan("default", {}, {})), Side.HOST: native_host(files, said)})
        stack.callback(_see_nothing_left, here)
        stack.callback(_down)
        events.bring_up[:] = [here.bring_up]
        try:
            here.bring_up(Side.GADGET)
            here.bring_up(Side.HOST)
            here.devices = await_(lambda: _devices(files), "the devices")
        except Violation as error:
            raise Violation(f"{error}\n{here.last_words()}") from None
        yield here


def _put_in_place(stack: ExitStack, base: Path) -> None:
    before, cable = os.environ.get("REPLUG_RUNTIME"), events.cable[0]

    def restore() -> None:
        events.cable[0] = cable
        if before is None:
            os.environ.pop("REPLUG_RUNTIME", None)
        else:
            os.environ["REPLUG_RUNTIME"] = before

    stack.callback(restore)
    events.bring_up.clear()
    os.environ["REPLUG_RUNTIME"] = os.fspath(base)
    events.cable[0] = ModelCable()
    wire.be_at(base)


def native_host(files: list[Path], said: Mapping[Path, str] = MappingProxyType({})) -> Plan:
    """As `host serve` plans it, for the files as they are now."""
    words = [said.get(file, os.fspath(file)) for file in files]
    exports = [source.role_args() for source in look_at(words, None, False)]
    return _native(host_plan("default", exports, {"gadget": None, "exports": exports}))


def _native(plan: Plan) -> Plan:
    roles = tuple(replace(spec, entry=_ENTRIES.get(spec.entry, spec.entry)) for spec in plan.roles)
    return replace(plan, roles=roles, preload=tuple(_ENTRIES.get(entry, entry) for entry in plan.preload))


def await_(condition: Callable[[], Any], what: str, limit_s: float = _LIMIT_S) -> Any:
    end = time.monotonic() + limit_s
    while not (value := condition()):
        if time.monotonic() > end:
            raise Violation(f"waited {limit_s:g} s for {what}")
        time.sleep(0.01)
    return value


def _devices(files: list[Path]) -> list[Path] | None:
    try:
        exports = ask(Runtime(Side.GADGET), "session", "status", timeout_s=2.0)["exports"]
    except ReplugError:
        return None
    live = {export["size_bytes"]: Path(export["device"]) for export in exports if export["state"] == "live"}
    found = [live.get(file.stat().st_size) for file in files]
    there = wire.call("ublk_numbers")
    named = [device for device in found if device is not None and int(device.name.removeprefix("ublkb")) in there]
    return named if len(named) == len(files) else None


def _down() -> None:
    for side in (Side.HOST, Side.GADGET):
        if Runtime(side).root.exists():
            take_down(Runtime(side), lambda text: None)


def _see_nothing_left(here: Bench) -> None:
    left = [record for side in Side for record in all_living(Runtime(side))]
    kill(left)
    await_deaths(left, 5.0)
    for spawner in here.started:
        spawner.wait(5.0)
    devices = wire.call("ublk_numbers")
    if left or devices or any(Runtime(side).root.exists() for side in Side):
        places = [place.name for place in Runtime(Side.HOST).root.parent.iterdir()]
        raise Violation(f"left behind by down: processes {left}, ublk devices {devices}, among {places}")


def _end(machine: "subprocess.Popen[bytes]") -> None:
    machine.kill()
    machine.wait()
