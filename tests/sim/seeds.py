"""Seeds that have found a fault, of the product or of what judges it, kept: test_sim runs them again at every commit.

A seed belongs to the commit it failed at: a change of a model or of the workload gives it another run. So each fault
has a test named for the behaviour as well; the seed costs a fraction of a second and may meet the fault's neighbours.
"""

from dataclasses import dataclass

from tests.sim.run import FAULTS


@dataclass(frozen=True)
class Kept:
    seed: int
    commit: str  # it failed here
    lesson: str
    faults: int = FAULTS


KEPT = (
    Kept(
        40275,
        "e951455",
        "a question belongs to its link: the answer to an old STATUS cancelled the search for the device",
    ),
    Kept(
        1000105,
        "03e8977",
        "of the checker: the end of a FUA write promises nothing of other writes that ended before it",
        faults=160,
    ),
)
