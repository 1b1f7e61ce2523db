"""A role that claims some I/O: what a look makes of its counts is under test, not the I/O."""

from bus.role import Role
from common.iostats import IoStats
from common.wire import Op


def start(role: Role) -> None:
    stats = IoStats(0.0)
    for _ in range(10):
        stats.done(Op.READ, 4096, 0.0007, False, 0.5)
    role.status = lambda: {**stats.status(1.0), "in_flight": 3}
    role.ready()
