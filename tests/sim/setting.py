"""What a run has beyond the first simulator's faults. Drawn from the seed in a stream of its own.

So a seed that is run with nothing of it (`PLAIN`) is the run it was before there was a choice: the fixed set, the
seeds that are kept and the mutations stay what their names say.
"""

import random
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Setting:
    """`disks`: sources fail. `watchdogs`: watchdog, spawner and twin are processes, and die like others; at the end
    both sides go down. `others`: the host comes back with another disk under an export's id, for a while.
    """

    disks: bool = False
    watchdogs: bool = False
    others: bool = False

    def __str__(self) -> str:
        return ",".join(field.name for field in fields(self) if getattr(self, field.name)) or "none"


PLAIN = Setting()


def drawn(seed: int) -> Setting:
    """Each half of the time."""
    stream = random.Random(f"setting of {seed}")
    return Setting(**{field.name: stream.random() < 0.5 for field in fields(Setting)})


def said(words: str) -> Setting:
    """As `str` tells it. TypeError for a word that is none."""
    return Setting(**{word: True for word in words.split(",") if word != "none"})
