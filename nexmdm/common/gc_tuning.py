"""The garbage collector of a process that has started: what is here to stay is not walked over again."""

import gc
from typing import Final

COLLECT_AFTER: Final = 20_000
"""How many new objects there may be before the collector looks at them; by its default of 700 it looks all the time."""


def freeze_startup_objects(collect_after: int = COLLECT_AFTER) -> None:
    """Spare the collector what is loaded by now: to walk over all of it stops everything for 50 ms."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(collect_after)
