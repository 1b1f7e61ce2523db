"""Entry of the gadget's session: its queues are gadget_queue's, and the kernel's devices are the model's."""

from bus.role import Role
from gadget.session import role
from tests.native import gadget_queue, wire

for name, value in (
    ("QUEUE_ENTRY", gadget_queue.__name__),
    ("ublk_ids", gadget_queue.ublk_ids),
    ("can_resize", lambda: True),
):
    setattr(role, name, value)


def start(living: Role) -> None:
    wire.at(living.runtime)
    role.start(living)
