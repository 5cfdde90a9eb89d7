"""Service time: the time in which web workers ran. A heartbeat keeps its device online for a length of service time.

Each web worker writes a mark every few seconds. If the last mark is older than LONGEST_PAUSE, no worker has run since
then, and the next worker that writes a mark stores this time as a gap. Everything here is SQL, so that each statement
decides by PostgreSQL's clock and by the marks and gaps that the statement sees.
"""

from datetime import datetime, timedelta
from typing import Any, ClassVar, Final, NamedTuple

import structlog
from django.conf import settings
from django.db.models import DateTimeField, Func

from nexmdm.common import database

log = structlog.get_logger()

ONLINE_INTERVALS: Final = 2.5
"""A device is online while its last heartbeat is younger than this many heartbeat intervals of service time."""

MARK_EVERY_SECONDS: Final = 5
LONGEST_PAUSE: Final = timedelta(seconds=20)
"""A longer time without a mark is a gap. A restart of the workers is usually shorter."""


def online_window() -> timedelta:
    """Return for how much service time a heartbeat keeps a device online."""
    return timedelta(seconds=ONLINE_INTERVALS * settings.HEARTBEAT_INTERVAL_SECONDS)


def _interval(length: timedelta) -> str:
    return f"interval '{length.total_seconds()} seconds'"


# The moment until which there was service: now, or the last mark if the workers are away.
_SERVED: Final = f"""(
    SELECT CASE WHEN max(at) < now() - {_interval(LONGEST_PAUSE)} THEN max(at) ELSE now() END FROM devices_servicemark
)"""  # noqa: S608  (a constant of this module)
_CONFIRMED: Final = "(SELECT LEAST(now(), max(at)) FROM devices_servicemark)"


def _online_after(clock: str) -> str:
    """Return the SQL of the moment that lies one window of service time before the moment `clock`."""
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
    """Return the SQL of the moment after which a device must have sent a heartbeat to be online now."""
    return _online_after(_SERVED)


def surely_online_after() -> str:
    """Return the SQL of the same moment, computed from the last mark, not from now. A gap that lasts has no effect.

    A device whose last heartbeat came before this moment is offline, whenever the next mark comes.
    """
    return _online_after(_CONFIRMED)


def online_until(seen: str) -> str:
    """Return the SQL of the moment until which a heartbeat at the moment `seen` (SQL) keeps its device online."""
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
    """online_after() as an expression. It depends on no row, so PostgreSQL computes it once."""

    output_field: ClassVar = DateTimeField()

    def as_sql(self, *_: Any, **__: Any) -> tuple[str, list[Any]]:  # type: ignore[override]
        """Return the SQL."""
        return online_after(), []


class OnlineUntil(Func):
    """online_until() as an expression. Its argument is a column with the time of a heartbeat."""

    output_field: ClassVar = DateTimeField()

    def as_sql(self, compiler: Any, *_: Any, **__: Any) -> tuple[str, list[Any]]:  # type: ignore[override]
        """Return the SQL. The column occurs in it several times, and must have no parameters."""
        column, parameters = compiler.compile(self.source_expressions[0])
        assert not parameters, "the time of a heartbeat is a column"
        return online_until(column), []


class Gap(NamedTuple):
    """A time in which the service was away."""

    began_at: datetime
    ended_at: datetime


_FIRST_MARK: Final = "INSERT INTO devices_servicemark (id, at) VALUES (1, now()) ON CONFLICT DO NOTHING"
# When workers return, only one of them sees the old mark: the others wait for the lock on the mark's row.
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
"""The last gap that this process knows of. Gaps never change."""


def mark() -> None:
    """Record that a web worker runs, and store the gap that ends now, if there was one."""
    global _latest  # noqa: PLW0603  (one value for the process)
    *_, found = database.execute_batch(_FIRST_MARK, _MARK, parameters=None)
    for began_at, ended_at, is_new in found[:1]:
        _latest = Gap(began_at, ended_at)
        if is_new:
            log.warning("service.gap", seconds=round((ended_at - began_at).total_seconds()))


# How long after a heartbeat a device is certainly online. This time never ends later than online_until(): it includes
# only the last gap, and only while the whole length of that gap counts.
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
    """Return the gaps of the service since a moment, in order. The end of the last gap is None if the gap lasts."""
    return database.rows(_GAPS, {"since": since})
