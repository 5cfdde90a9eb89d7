"""A reader by cursor skips nothing and repeats nothing, however the transactions of many writers overlap.

Hypothesis draws what each writer does; the threads of the machine decide how the transactions overlap.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import psycopg
import pytest
from django.db import connection
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from nexmdm.common.event_feed import events
from nexmdm.common.event_feed.events import Event, EventType
from nexmdm.events import feed
from nexmdm.events.cursor import Cursor

pytestmark = pytest.mark.django_db(transaction=True)

WRITERS: Final = 50
OPEN_SECONDS: Final = 20
"""How long the oldest transaction of the long test stays open."""


@dataclass(frozen=True, slots=True)
class Work:
    """A transaction: the number of events of each of its statements, and whether it is committed."""

    statements: tuple[int, ...]
    commits: bool


WORK: Final = st.builds(
    Work,
    st.lists(st.integers(min_value=1, max_value=4), min_size=1, max_size=3).map(tuple),
    st.sampled_from([True, True, True, False]),
)
PLANS: Final = st.lists(st.lists(WORK, min_size=1, max_size=4), min_size=WRITERS, max_size=WRITERS)


@dataclass(slots=True)
class Writers:
    """What the writers have committed, by the name of each event."""

    committed: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self, session: psycopg.Connection[Any], name: str, work: Work) -> None:
        """Run one transaction."""
        names = [
            [f"{name}.{statement}.{number}" for number in range(count)]
            for statement, count in enumerate(work.statements)
        ]
        for one in names:
            append(session, one)
        if work.commits:
            session.commit()
            with self.lock:
                self.committed += [text for one in names for text in one]
        else:
            session.rollback()


def append(session: psycopg.Connection[Any], names: Sequence[str]) -> None:
    """Append events as the server does, with their names as data."""
    made = [Event(EventType.DEVICE_UPDATED, UUID(int=1), data={"name": name}) for name in names]
    session.execute(events.APPEND, events.parameters(made))


@contextmanager
def session() -> Iterator[psycopg.Connection[Any]]:
    """A connection of its own."""
    with psycopg.connect(**connection.get_connection_params() | {"cursor_factory": psycopg.Cursor}) as one:
        yield one


def names_after(place: Cursor | None, limit: int) -> tuple[list[str], Cursor, bool]:
    page = feed.read(place, feed.Wanted(), limit)
    return [event.data["name"] for event in page.events], page.next_cursor, page.caught_up


def follow(start: Cursor, writing: threading.Event, limit: int) -> list[str]:
    """Read page by page until the writers have ended and everything is read."""
    found: list[str] = []
    place = start
    while True:
        is_last = not writing.is_set()
        names, place, caught_up = names_after(place, limit)
        found += names
        if is_last and caught_up:
            return found


def play(plans: Sequence[Sequence[Work]], limit: int) -> tuple[list[str], list[str]]:
    """Run all writers side by side with a reader, over a transaction that is older than all of theirs.

    Returns the names of the committed events, and those that the reader got, in its order.
    """
    start, writers, writing = feed.newest_place(), Writers(), threading.Event()

    def run(number: int, plan: Sequence[Work]) -> None:
        with session() as own:
            for turn, work in enumerate(plan):
                writers.write(own, f"{number}.{turn}", work)

    writing.set()
    with session() as oldest, ThreadPoolExecutor(WRITERS + 1) as pool:
        append(oldest, ["oldest"])
        reader = pool.submit(_in_thread, follow, start, writing, limit)
        for one in [pool.submit(run, number, plan) for number, plan in enumerate(plans)]:
            one.result()
        assert names_after(start, 1000)[0] == [], "the oldest transaction is still open"
        oldest.commit()
        writing.clear()
        found = reader.result()
    return [*writers.committed, "oldest"], found


def _in_thread(work: Any, *arguments: Any) -> Any:
    try:
        return work(*arguments)
    finally:
        connection.close()


@seed(20)
@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(plans=PLANS, limit=st.sampled_from([1, 7, 1000]))
def test_a_reader_gets_each_committed_event_once_and_none_that_was_rolled_back(
    db: None, plans: list[list[Work]], limit: int
) -> None:
    start = feed.newest_place()
    committed, found = play(plans, limit)
    assert sorted(found) == sorted(committed)
    again, _, _ = names_after(start, 1000)
    assert found[: len(again)] == again, "the order is the same at the second reading"


def test_a_reader_skips_nothing_while_a_transaction_stays_open_for_20_seconds() -> None:
    start, writers, ends_at = feed.newest_place(), Writers(), time.monotonic() + OPEN_SECONDS
    writing = threading.Event()
    writing.set()

    def run(number: int) -> None:
        with session() as own:
            turn = 0
            while time.monotonic() < ends_at:
                turn += 1
                writers.write(own, f"{number}.{turn}", Work((1 + number % 3,), commits=turn % 5 > 0))

    with session() as oldest, session() as long, ThreadPoolExecutor(WRITERS + 1) as pool:
        append(oldest, ["oldest"])
        reader = pool.submit(_in_thread, follow, start, writing, 1000)
        running = [pool.submit(run, number) for number in range(WRITERS)]
        append(long, ["second"])
        long.commit()
        for one in running:
            one.result()
        oldest.commit()
        writing.clear()
        found = reader.result()
    expected = [*writers.committed, "second", "oldest"]
    assert len(found) == len(set(found)) == len(expected) > WRITERS
    assert set(found) == set(expected)
