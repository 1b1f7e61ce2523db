"""Which modules are mutated, and which unit tests are to notice."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Core:
    """`simulated`: what its unit tests do not notice, some seeds of the simulator may."""

    module: str
    tests: tuple[str, ...]
    simulated: bool = True

    @property
    def path(self) -> str:
        return self.module.replace(".", "/") + ".py"


CORES = (
    Core("gadget.usb.core", ("unit/test_gadget_usb_core.py", "unit/test_eject.py")),
    Core("gadget.usb.link", ("unit/test_gadget_usb_core.py",)),
    Core("gadget.ublk.core", ("unit/test_queue_core.py",)),
    Core("gadget.session.core", ("unit/test_gadget_session_core.py", "unit/test_eject.py", "unit/test_parking.py")),
    Core("host.usb.core", ("unit/test_host_usb_core.py", "unit/test_refusals.py")),
    Core("host.usb.extents", ("unit/test_host_usb_core.py",)),
    Core("host.source.core", ("unit/test_host_source.py",)),
    Core("host.session.core", ("unit/test_host_session.py",)),
    Core("tools.supervise.table", ("unit/test_supervise_core.py",), simulated=False),
    Core("tools.supervise.core", ("unit/test_supervise_core.py",), simulated=False),
    Core("common.framing", ("unit/test_wire_v1.py",)),
    Core("common.ledger", ("unit/test_ledger.py", "unit/test_parking.py")),
    Core("bus.lane", ("unit/test_bus_lane.py",)),
)
