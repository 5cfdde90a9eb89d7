"""The limit on attempts to log in to the admin site from one address, with a right or a wrong password.

Each attempt is counted before its password is hashed. Otherwise, attempts at the same moment would all pass the limit.
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
    """Raise RateLimited for an address that is known to be over its limit. Runs no SQL."""
    _refuse(logins.seconds_over(address))


def count(address: str) -> None:
    """Count an attempt, in a thread that may use the database. Raises RateLimited beyond LOGIN_RATE_LIMIT."""
    _refuse(logins.count(address, settings.LOGIN_RATE_LIMIT))


def _refuse(seconds: int | None) -> None:
    if seconds is not None:
        _LIMITED.inc()
        raise RateLimited(seconds, "logins")


def note(*, good: bool, address: str, username: str) -> None:
    """Log and count the result of a login. The log contains the name only after a successful login, because people
    sometimes type their password into the field for the name."""
    (_GOOD if good else _FAILED).inc()
    log.info("site.login", good=good, address=address, **({"username": username} if good else {}))
