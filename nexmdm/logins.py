"""How often an address may have a password of the admin site hashed, be it right or wrong.

Each attempt counts, before its hash: counted afterwards, all that run at the same moment would pass.
"""

import time
from typing import Final

import structlog
from django.conf import settings
from prometheus_client import Counter

from nexmdm import limits
from nexmdm.limits import RateLimited

log = structlog.get_logger()

LOGINS: Final = Counter("nexmdm_logins", "Logins to the admin site: good, failed, limited.", ["result"])
_GOOD, _FAILED, _LIMITED = map(LOGINS.labels, ("good", "failed", "limited"))

_over_until: Final[dict[str, float]] = {}


def refuse_over_limit(address: str) -> None:
    """Raise RateLimited for an address that is known to be over its limit: costs a look into a dictionary."""
    left = _over_until.get(address, 0.0) - time.monotonic()
    if left > 0:
        _LIMITED.inc()
        raise RateLimited(max(1, round(left)))


def count(address: str) -> None:
    """Count an attempt, in a thread that may use the database. Raises RateLimited beyond LOGIN_RATE_LIMIT."""
    usage = limits.count("login", address, settings.LOGIN_RATE_LIMIT)
    if not usage["should_limit"]:
        return
    if len(_over_until) >= limits.REMEMBERED:
        _over_until.clear()
    _over_until[address] = time.monotonic() + max(1, usage["time_left"])
    refuse_over_limit(address)


def note(*, good: bool, address: str, username: str) -> None:
    """Note how a login ended. The name is logged of a good one only: people type their password into its field, too."""
    (_GOOD if good else _FAILED).inc()
    log.info("site.login", good=good, address=address, **({"username": username} if good else {}))
