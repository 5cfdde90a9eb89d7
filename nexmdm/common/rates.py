"""Rates as the settings write them, such as `120/m` and `5/10s`."""

from typing import Final

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def parse(rate: str) -> tuple[int, int]:
    """Return the number of calls that a rate allows, and the seconds of its period."""
    number, _, period = rate.partition("/")
    return int(number), int(period[:-1] or 1) * _SECONDS[period[-1]]
