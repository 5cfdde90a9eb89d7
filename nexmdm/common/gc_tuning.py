"""Settings of the garbage collector for a process that has started: objects of the start are not scanned again."""

import gc
from typing import Final

COLLECT_AFTER: Final = 20_000
"""The number of new objects that starts a collection. With the default of 700, collections run all the time."""


def freeze_startup_objects(collect_after: int = COLLECT_AFTER) -> None:
    """Freeze start-up objects so that full collections skip them: to scan them stops the process for 50 ms."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(collect_after)
