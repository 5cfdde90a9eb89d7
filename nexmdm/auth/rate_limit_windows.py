"""The counters of the rate limits, as a Django cache for django-ratelimit. The counters are exact across processes.

A rate is the value of a setting, for example `120/m` for ADMIN_RATE_LIMIT. A rate contains the length of its window.
rate_limits.py counts requests with the functions of this module.

The counters are in one UNLOGGED table. No WAL is written for the counters, and a crash of PostgreSQL deletes the
counters. Django's DatabaseCache is not used, because DatabaseCache reads before it writes: parallel calls would not be
counted.
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
    """A cache of counters that expire. Only add(), incr(), get() and clear() are supported."""

    def __init__(self, _: str, params: dict[str, Any]) -> None:
        super().__init__(params)

    def add(self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Start a counter with `value`, for `timeout` seconds. If a counter with this key exists, do nothing and return
        False.
        """
        seconds = self.default_timeout if timeout is DEFAULT_TIMEOUT else timeout
        given = {"key": self.make_key(key, version), "value": value, "seconds": seconds}
        return database.execute(_ADD, given) == 1

    def incr(self, key: str, delta: int = 1, version: int | None = None) -> int:
        """Increase a counter, and return its new value. Raises ValueError if the counter does not exist."""
        found = database.rows(_INCREMENT, {"key": self.make_key(key, version), "delta": delta})
        if not found:
            raise ValueError("There is no such counter.")
        return int(found[0][0])

    def get(self, key: str, default: Any = None, version: int | None = None) -> Any:
        """Return the value of a counter. If no counter with this key exists, return `default`."""
        found = database.rows(_READ, {"key": self.make_key(key, version)})
        return found[0][0] if found else default

    def clear(self) -> None:
        """Delete all counters."""
        database.execute("DELETE FROM nexmdm_counter")


def count(group: str, key: str, rate: str) -> dict[str, Any]:
    """Count one call of `key` in `group`. Return the usage of the rate in django-ratelimit's form.

    Call this function in a thread.
    """
    usage: dict[str, Any] = get_usage(None, group=group, key=lambda *_: key, rate=rate, increment=True)
    return usage


def count_at_once(group: str, key: str, rate: str, calls: int = 1) -> tuple[int, float]:
    """Count several calls of `key` in `group` by one statement.

    Return how many of these calls are over the limit, and the seconds until the window ends. The window begins with its
    first call. Use this function where calls are frequent, because count() runs two statements and takes more time.
    """
    limit, seconds = rates.parse(rate)
    parameters = {"key": f"{group}:{key}:{rate}", "seconds": seconds, "calls": calls}
    number, seconds_left = database.row(_COUNT, parameters)
    return min(calls, max(0, number - limit)), seconds_left


def forget_expired() -> int:
    """Delete the counters whose window has ended. Return the number of counters."""
    return database.execute(_FORGET)
