"""Service time: the time in which web workers ran. A device is online for a length of service time after a heartbeat.

Each web worker writes a mark (its present time) every few seconds. If the last mark is older than LONGEST_PAUSE, no web
worker has run since this mark. The next web worker that writes a mark then stores the time since the last mark as a
service gap. All decisions are made in SQL, by the clock of PostgreSQL.
"""

from datetime import datetime, timedelta
from typing import Any, ClassVar, Final, NamedTuple

import structlog
from django.conf import settings
from django.db.models import DateTimeField, Func

from nexmdm.common import database

log = structlog.get_logger()

ONLINE_INTERVALS: Final = 2.5
"""A device is online while its last heartbeat is younger than this number of heartbeat intervals. Service gaps do not
count.
"""

MARK_EVERY_SECONDS: Final = 5
LONGEST_PAUSE: Final = timedelta(seconds=20)
"""The longest time between two marks that is no service gap. A restart of the workers usually takes less time."""


def online_window() -> timedelta:
    """Return how long a heartbeat keeps its device online. The time of service gaps does not count."""
    return timedelta(seconds=ONLINE_INTERVALS * settings.HEARTBEAT_INTERVAL_SECONDS)


def _interval(length: timedelta) -> str:
    return f"interval '{length.total_seconds()} seconds'"


# The moment until which web workers ran: now, or the last mark if no web worker runs.
_SERVED: Final = f"""(
    SELECT CASE WHEN max(at) < now() - {_interval(LONGEST_PAUSE)} THEN max(at) ELSE now() END FROM devices_servicemark
)"""  # noqa: S608  (a constant of this module)
_CONFIRMED: Final = "(SELECT LEAST(now(), max(at)) FROM devices_servicemark)"


def _online_after(clock: str) -> str:
    window = _interval(online_window())
    return f"""(
        SELECT clock.at - {window} - COALESCE((
            SELECT sum(length) FROM (
                SELECT ended_at - began_at AS length, clock.at - ended_at - COALESCE(sum(ended_at - began_at) OVER (
                    ORDER BY ended_at DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
                ), '0') AS served_since
                FROM devices_servicegap
            ) gap
            WHERE served_since < {window}
        ), '0')
        FROM (SELECT {clock} AS at) clock
    )"""  # noqa: S608  (constants of this module, and numbers)


def online_after() -> str:
    """Return SQL for a moment: a device is online now if its last heartbeat came after this moment."""
    return _online_after(_SERVED)


def certainly_offline_until() -> str:
    """Return SQL for a moment: a device is certainly offline if its last heartbeat came at or before this moment.

    This moment is computed from the last mark, and not from the present time as in online_after(). Therefore a service
    gap that has not ended does not move this moment.
    """
    return _online_after(_CONFIRMED)


def online_until(seen: str) -> str:
    """Return SQL for the moment until which a heartbeat keeps its device online.

    `seen` is SQL for the time of the heartbeat.
    """
    window = _interval(online_window())
    return f"""(
        SELECT {seen} + {window} + COALESCE(sum(length) FILTER (WHERE served < {window}), '0')
        FROM (
            SELECT length, began_at - {seen} - COALESCE(sum(length) OVER (
                ORDER BY began_at ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ), '0') AS served
            FROM (
                SELECT began_at, ended_at - GREATEST(began_at, {seen}) AS length
                FROM devices_servicegap WHERE ended_at > {seen}
            ) gap
        ) later
    )"""  # noqa: S608  (constants of this module, numbers, and SQL of our modules)


class OnlineAfter(Func):
    """online_after() as an expression of Django. It depends on no row, so PostgreSQL computes it only once for each
    query.
    """

    output_field: ClassVar = DateTimeField()

    def as_sql(self, *_: Any, **__: Any) -> tuple[str, list[Any]]:  # type: ignore[override]
        """Return the SQL."""
        return online_after(), []


class OnlineUntil(Func):
    """online_until() as an expression of Django. Its argument is a column with the time of a heartbeat."""

    output_field: ClassVar = DateTimeField()

    def as_sql(self, compiler: Any, *_: Any, **__: Any) -> tuple[str, list[Any]]:  # type: ignore[override]
        """Return the SQL. The compiled column must have no parameters, because the SQL contains the column several
        times.
        """
        column, parameters = compiler.compile(self.source_expressions[0])
        assert not parameters, "the time of a heartbeat is a column"
        return online_until(column), []


class Gap(NamedTuple):
    """A service gap."""

    began_at: datetime
    ended_at: datetime


_FIRST_MARK: Final = "INSERT INTO devices_servicemark (id, at) VALUES (1, now()) ON CONFLICT DO NOTHING"
# After a gap, only one web worker sees the old mark. All other workers wait for the lock on the row of the mark.
_MARK: Final = f"""
    WITH last AS MATERIALIZED (
        SELECT at FROM devices_servicemark WHERE id = 1 FOR UPDATE
    ), gap AS (
        INSERT INTO devices_servicegap (began_at, ended_at)
        SELECT at, now() FROM last WHERE at < now() - {_interval(LONGEST_PAUSE)}
        RETURNING began_at, ended_at
    ), marked AS (
        UPDATE devices_servicemark mark SET at = GREATEST(mark.at, now()) FROM last WHERE mark.id = 1
    )
    SELECT began_at, ended_at, true FROM gap
    UNION ALL
    (SELECT began_at, ended_at, false FROM devices_servicegap ORDER BY ended_at DESC LIMIT 1)
"""  # noqa: S608  (a constant of this module)

_latest: Gap | None = None
"""The last service gap that this process knows, or None. A stored gap never changes."""


def mark() -> None:
    """Record that a web worker runs now. If a service gap ends now, store the gap and log a warning."""
    global _latest  # noqa: PLW0603  (one value for the process)
    *_, found = database.execute_batch(_FIRST_MARK, _MARK, parameters=None)
    for began_at, ended_at, is_new in found[:1]:
        _latest = Gap(began_at, ended_at)
        if is_new:
            log.warning("service.gap", seconds=round((ended_at - began_at).total_seconds()))


# The time after a heartbeat in which its device is certainly online. This time must never end after online_until(). So
# it includes only the last service gap, and only while the whole length of this gap counts.
CERTAINLY_ONLINE_FOR: Final = """(
    %(online_window)s + CASE WHEN now() < %(last_gap_counts_until)s THEN %(last_gap)s ELSE interval '0' END
)"""


def certainly_online_params() -> dict[str, Any]:
    """Return the parameters of CERTAINLY_ONLINE_FOR."""
    window = online_window()
    if _latest is None:
        return {"online_window": window, "last_gap_counts_until": None, "last_gap": timedelta(0)}
    began_at, ended_at = _latest
    return {"online_window": window, "last_gap_counts_until": ended_at + window, "last_gap": ended_at - began_at}


_GAPS: Final = f"""
    SELECT began_at, ended_at FROM devices_servicegap WHERE ended_at > %(since)s
    UNION ALL
    SELECT at, NULL FROM devices_servicemark WHERE at < now() - {_interval(LONGEST_PAUSE)}
    ORDER BY began_at
"""  # noqa: S608  (a constant of this module; values are parameters)


def gaps(since: datetime) -> list[tuple[datetime, datetime | None]]:
    """Return the service gaps that ended after `since`, in order. The end of a gap that has not ended is None."""
    return database.rows(_GAPS, {"since": since})
