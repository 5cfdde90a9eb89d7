"""Rate limits by network address. Only a limited number of addresses have a separate counter."""

import time
from typing import Final

from prometheus_client import Counter

from nexmdm.auth.rate_limit_windows import count
from nexmdm.common import addresses, rates

COUNTED_ADDRESSES: Final = 1000
"""The largest number of addresses with a separate counter. All further addresses share one counter.

This number applies to each process and each limit. After the window of the limit, but at least after a minute, the
process forgets the addresses. Then the process begins anew. Because of the shared counter, an attack from many
addresses cannot fill the table of counters.
"""

_TOGETHER: Final = "further addresses"
_LEAST_SECONDS: Final = 60

COUNTED_TOGETHER = Counter(
    "nexmdm_failures_counted_together",
    "Failed authentications and logins from addresses that have no separate counter.",
)


class AddressLimit:
    """A rate limit for each address. The counters are in the database, and count exactly across processes."""

    def __init__(self, group: str) -> None:
        self._group = group
        self._over_until: dict[str, float] = {}
        self._counted: set[str] = set()
        self._counted_since = float("-inf")

    def seconds_over(self, client: str) -> int | None:
        """Return the seconds to wait if this process knows that the address is over the limit, or None. Runs no SQL."""
        key = addresses.counting_key(client)
        until = self._over_until.get(key, 0.0)
        if len(self._counted) >= COUNTED_ADDRESSES and key not in self._counted:
            until = max(until, self._over_until.get(_TOGETHER, 0.0))
        left = until - time.monotonic()
        return max(1, round(left)) if left > 0 else None

    def count(self, client: str, rate: str) -> int | None:
        """Count one call. Return the seconds to wait if the address is over the limit, or None. Call this function in a
        thread.
        """
        key = self._counted_as(addresses.counting_key(client), rate)
        usage = count(self._group, key, rate)
        if not usage["should_limit"]:
            return None
        seconds = max(1, int(usage["time_left"]))
        self._over_until[key] = time.monotonic() + seconds
        return seconds

    def forget(self) -> None:
        """Delete what this process remembers about addresses. The counters in the database stay."""
        self._counted_since = float("-inf")
        self._over_until.clear()
        self._counted.clear()

    def _counted_as(self, key: str, rate: str) -> str:
        """Return the name of the counter for an address: a separate counter while the process has room, or the shared
        counter.
        """
        now = time.monotonic()
        if now - self._counted_since > max(_LEAST_SECONDS, rates.parse(rate)[1]):
            self._counted_since = now
            self._counted.clear()
            for over, until in list(self._over_until.items()):
                if until <= now:
                    self._over_until.pop(over, None)
        if key not in self._counted:
            if len(self._counted) >= COUNTED_ADDRESSES:
                COUNTED_TOGETHER.inc()
                return _TOGETHER
            self._counted.add(key)
        return key
