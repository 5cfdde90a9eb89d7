"""How often an address may have a password of the admin site hashed, be it right or wrong.

Each attempt counts, before its hash: counted afterwards, all that run at the same moment would pass.
"""

from typing import Final

import structlog
from django.conf import settings
from prometheus_client import Counter

from nexmdm.auth.address_limits import AddressLimit
from nexmdm.auth.rate_limits import RateLimited

log = structlog.get_logger()

LOGINS: Final = Counter("nexmdm_logins", "Logins to the admin site: good, failed, limited.", ["result"])
_GOOD, _FAILED, _LIMITED = map(LOGINS.labels, ("good", "failed", "limited"))

logins: Final = AddressLimit("login")


def refuse_over_limit(address: str) -> None:
    """Raise RateLimited for an address that is known to be over its limit. Costs no statement."""
    _refuse(logins.seconds_over(address))


def count(address: str) -> None:
    """Count an attempt, in a thread that may use the database. Raises RateLimited beyond LOGIN_RATE_LIMIT."""
    _refuse(logins.count(address, settings.LOGIN_RATE_LIMIT))


def _refuse(seconds: int | None) -> None:
    if seconds is not None:
        _LIMITED.inc()
        raise RateLimited(seconds, "logins")


def note(*, good: bool, address: str, username: str) -> None:
    """Note how a login ended. The name is logged of a good one only: people type their password into its field, too."""
    (_GOOD if good else _FAILED).inc()
    log.info("site.login", good=good, address=address, **({"username": username} if good else {}))
