"""Entry of the host's session: sysfs and uevents by the model process."""

from bus.role import Role
from host.session import role
from host.session.finder import Gadget
from tests.native import wire
from tests.native.wire import Line, call


def find(serial: str | None) -> list[Gadget]:
    address = call("address")
    return [Gadget(1, address, "model", "high-speed")] if address else []


class Uevents:
    """host.session.finder.Uevents."""

    def __init__(self) -> None:
        self._line = Line("uevents")
        self.fd = self._line.fd

    def usb_device_came(self) -> bool:
        return bool(self._line.pushed())


class Hold:
    """host.session.hold.Hold: there is one host, and the machine's own USB devices are not to be touched."""

    def take(self, gadget: Gadget) -> bool:
        return True


for name, value in (("find", find), ("Uevents", Uevents), ("Hold", Hold)):
    setattr(role, name, value)


def start(living: Role) -> None:
    wire.at(living.runtime)
    role.start(living)
