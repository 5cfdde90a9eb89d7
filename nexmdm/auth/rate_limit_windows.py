"""The windows of the rate limits: a Django cache that counts for django-ratelimit, exact across processes.

A rate contains the length of its window. A rate is a setting such as ADMIN_RATE_LIMIT, `120/m`. rate_limits.py counts
the requests for these rates.

One UNLOGGED table: a crash of PostgreSQL deletes the counts, and counting costs no WAL. (Django's own DatabaseCache
reads and then writes, so that parallel callers are not counted.)
"""

from typing import Any, Final

from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache
from django_ratelimit.core import get_usage

from nexmdm.common import database, rates

_ADD: Final = """
    INSERT INTO nexmdm_counter AS counter (key, value, expires_at)
    VALUES (%(key)s, %(value)s, now() + %(seconds)s * interval '1 second')
    ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires_at = excluded.expires_at
    WHERE counter.expires_at <= now()
"""
_INCREMENT: Final = "UPDATE nexmdm_counter SET value = value + %(delta)s WHERE key = %(key)s RETURNING value"
_COUNT: Final = """
    INSERT INTO nexmdm_counter AS counter (key, value, expires_at)
    VALUES (%(key)s, %(calls)s, now() + %(seconds)s * interval '1 second')
    ON CONFLICT (key) DO UPDATE
    SET value = CASE WHEN counter.expires_at <= now() THEN 0 ELSE counter.value END + excluded.value,
        expires_at = CASE WHEN counter.expires_at <= now() THEN excluded.expires_at ELSE counter.expires_at END
    RETURNING value, extract(epoch FROM expires_at - now())::float8
"""
_READ: Final = "SELECT value FROM nexmdm_counter WHERE key = %(key)s AND expires_at > now()"
_FORGET: Final = "DELETE FROM nexmdm_counter WHERE expires_at <= now()"


class CounterCache(BaseCache):
    """Counters that expire. Only add(), incr(), get() and clear() are supported."""

    def __init__(self, _: str, params: dict[str, Any]) -> None:
        super().__init__(params)

    def add(self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Start a counter; return False if it exists already."""
        seconds = self.default_timeout if timeout is DEFAULT_TIMEOUT else timeout
        given = {"key": self.make_key(key, version), "value": value, "seconds": seconds}
        return database.execute(_ADD, given) == 1

    def incr(self, key: str, delta: int = 1, version: int | None = None) -> int:
        """Increase the counter; return the new value. Raises ValueError if there is no such counter."""
        found = database.rows(_INCREMENT, {"key": self.make_key(key, version), "delta": delta})
        if not found:
            raise ValueError("There is no such counter.")
        return int(found[0][0])

    def get(self, key: str, default: Any = None, version: int | None = None) -> Any:
        """Return a counter's value, or the default."""
        found = database.rows(_READ, {"key": self.make_key(key, version)})
        return found[0][0] if found else default

    def clear(self) -> None:
        """Delete every counter."""
        database.execute("DELETE FROM nexmdm_counter")


def count(group: str, key: str, rate: str) -> dict[str, Any]:
    """Count one more call of a group's key, in a thread; return the usage of the rate in django-ratelimit's form."""
    usage: dict[str, Any] = get_usage(None, group=group, key=lambda *_: key, rate=rate, increment=True)
    return usage


def count_at_once(group: str, key: str, rate: str, calls: int = 1) -> tuple[int, float]:
    """Count more calls of a group's key by one statement.

    Returns how many of these calls are over the limit, and the seconds until the window ends. The window begins with
    its first call. Use this function, not count(), where calls are frequent: count() uses django-ratelimit, which runs
    two statements and takes more time.
    """
    limit, seconds = rates.parse(rate)
    parameters = {"key": f"{group}:{key}:{rate}", "seconds": seconds, "calls": calls}
    number, seconds_left = database.row(_COUNT, parameters)
    return min(calls, max(0, number - limit)), seconds_left


def forget_expired() -> int:
    """Delete the counters whose time is over; return how many."""
    return database.execute(_FORGET)
