"""The limit on logins to the admin site from one address. Successful and failed attempts count.

Each attempt is counted before its password is hashed. If it were counted later, many attempts at the same time could
exceed the limit.
"""

from typing import Final

import structlog
from django.conf import settings
from prometheus_client import Counter

from nexmdm.auth.address_limits import AddressLimit
from nexmdm.auth.rate_limits import RateLimited

log = structlog.get_logger()

LOGINS: Final = Counter("nexmdm_logins", "Attempts to log in to the admin site, by result.", ["result"])
_GOOD, _FAILED, _LIMITED = map(LOGINS.labels, ("good", "failed", "limited"))

logins: Final = AddressLimit("login")


def refuse_over_limit(address: str) -> None:
    """Raise RateLimited if an address is known to be over its limit. This function runs no SQL."""
    _refuse(logins.seconds_over(address))


def count(address: str) -> None:
    """Count an attempt. Raises RateLimited if the address is above LOGIN_RATE_LIMIT.

    Call this function in a thread, because it uses the database.
    """
    _refuse(logins.count(address, settings.LOGIN_RATE_LIMIT))


def _refuse(seconds: int | None) -> None:
    if seconds is not None:
        _LIMITED.inc()
        raise RateLimited(seconds, "logins")


def note(*, good: bool, address: str, username: str) -> None:
    """Log and count the result of an attempt.

    After a failed attempt, the log does not contain the user name, because people sometimes type their password there.
    """
    (_GOOD if good else _FAILED).inc()
    log.info("site.login", good=good, address=address, **({"username": username} if good else {}))
