"""`python -m tests.native.model SOCKET SEED V0`: the model process, whole."""

import sys

from tests.native import ublk_ends, usb_ends
from tests.native.machine import Machine


def main(argv: list[str]) -> None:
    machine = Machine(argv[0], int(argv[1]), argv[2] == "1")
    usb_ends.install(machine)
    ublk_ends.install(machine)
    world = machine.world
    machine.calls["complaints"] = lambda connection: world.violations
    machine.calls["counts"] = lambda connection: dict(world.counts)
    machine.calls["trace"] = lambda connection: list(world.trace)
    machine.run()


if __name__ == "__main__":
    main(sys.argv[1:])
