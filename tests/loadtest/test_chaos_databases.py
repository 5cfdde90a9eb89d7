"""The promises for a database that fails over, freezes or accepts no writes can fail."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Final, cast

import pytest

from loadtest.chaos import __main__ as chaos
from loadtest.chaos.answers import Gap
from loadtest.chaos.failover import Failovers
from loadtest.chaos.faults import Fault, SameProcesses, SecondDispatcher
from loadtest.chaos.frozen import Freeze, Freezes
from loadtest.chaos.readonly import Demotions
from loadtest.chaos.traffic import Exchange
from loadtest.load.targets import Target
from loadtest.testbed import pgbouncer
from loadtest.testbed.postgres_pair import PostgresPair
from loadtest.testbed.serving import Serving
from loadtest.testbed.tcp_proxy import TcpProxy
from tests.loadtest.test_chaos import AWAY, NO_BOOK, PROMPT, missed

SAME: Final = cast("SameProcesses", SimpleNamespace(judged=lambda: Target("processes that ended", "", "", held=True)))
PAIR: Final = cast("PostgresPair", None)
HUNG: Final = replace(AWAY, status=0, code="TimeoutError")
LATER: Final = replace(PROMPT, begun_at=200, ended_at=200.1)


def processes(pids: dict[str, int], *, second_lives: bool = True) -> SameProcesses:
    """Return a record of processes with these ids; tests change the ids afterwards."""
    serving, second = SimpleNamespace(child=pids.__getitem__), SimpleNamespace(is_alive=lambda: second_lives)
    return SameProcesses(cast("Serving", serving), cast("SecondDispatcher", second))


def failovers(*gaps: Gap, same: SameProcesses = SAME) -> Failovers:
    return Failovers(PAIR, same, len(gaps), print, list(gaps))


def freezes(*gaps: Gap) -> Freezes:
    proxy = cast("TcpProxy", None)
    return Freezes(proxy, SAME, [Freeze(gap.back_at - gap.stopped_at) for gap in gaps], print, list(gaps))


def demotions(*left: tuple[int, str]) -> Demotions:
    proxy = cast("TcpProxy", None)
    gaps = [Gap(100 + 50 * number, 108 + 50 * number) for number in range(len(left))]
    return Demotions(PAIR, proxy, SAME, len(left), print, gaps, list(left))


def missed_by(fault: Fault, *exchanges: Exchange) -> set[str]:
    return missed(fault.judged([*exchanges, LATER], NO_BOOK, []))


def test_a_failover_may_refuse_requests_as_long_as_there_is_no_primary_and_little_longer() -> None:
    fault = failovers(Gap(100, 106))
    assert missed_by(fault, AWAY) == set()
    assert missed_by(fault, replace(AWAY, ended_at=110.9)) == set()
    assert missed_by(fault, replace(AWAY, ended_at=111)) == {"last failure after the database was back"}
    assert missed_by(fault) == {"requests refused in the gaps"}
    assert missed_by(replace(fault, times=2), AWAY) == {"failovers"}
    ahead = time.time() - time.monotonic()
    assert fault.away() == [pytest.approx((100 + ahead, 111 + ahead), abs=1)]


@pytest.mark.parametrize("status", [0, 200, 500, 503])
def test_nothing_but_200_and_503_is_answered(status: int) -> None:
    exchange = replace(AWAY, status=status)
    spoilt = {"answers are 200 or 503"} if status in {0, 500} else set()
    for fault in (failovers(Gap(100, 104)), demotions((0, ""))):
        assert missed_by(fault, AWAY, exchange) == spoilt


def test_slow_requests_while_the_old_primary_returns_do_not_count() -> None:
    slow = Exchange("command", 116, 119, 200)
    assert missed_by(failovers(Gap(100, 104)), AWAY, slow) == {"slow requests 5 s after the database was back"}
    assert missed_by(failovers(Gap(100, 104, busy_at=115)), AWAY, PROMPT, slow) == set()


def test_a_process_that_ends_in_a_failover_is_named() -> None:
    pids = {"web-1": 1, "web-2": 2, "dispatch": 3}
    same = processes(pids)
    assert missed_by(failovers(Gap(100, 104), same=same), AWAY) == set()
    pids["web-2"] = 4
    assert same.judged().figure == "web-2"
    assert missed_by(failovers(Gap(100, 104), same=same), AWAY) == {"processes that ended"}
    assert processes(pids, second_lives=False).judged().figure == "second dispatch"


REFUSED: Final = "answers meanwhile"
IN_TIME: Final = "requests that overlapped a freeze were answered"


@pytest.mark.parametrize(
    ("exchange", "missed_then"),
    [
        (replace(AWAY, ended_at=111), set()),
        (replace(AWAY, ended_at=111.1), {IN_TIME}),
        (replace(AWAY, begun_at=130, ended_at=149.9), {IN_TIME}),
        (replace(HUNG, ended_at=102), {REFUSED, "answers are 200 or 503", "refusals are problem details"}),
        (replace(AWAY, status=200, code=""), {REFUSED}),
        (replace(PROMPT, begun_at=99.9, ended_at=100.1), set()),
        (replace(PROMPT, begun_at=139.9, ended_at=141), set()),
        (replace(PROMPT, begun_at=99, ended_at=140.5), {IN_TIME}),
        (replace(AWAY, begun_at=145, ended_at=150), {"last failure after the database was back"}),
        (replace(AWAY, flaw="text/html"), {"refusals are problem details"}),
    ],
)
def test_each_request_in_a_freeze_is_refused_in_time(exchange: Exchange, missed_then: set[str]) -> None:
    assert missed_by(freezes(Gap(100, 140)), AWAY, exchange) == missed_then


def test_a_freeze_without_requests_proves_nothing() -> None:
    assert missed_by(freezes(Gap(100, 140))) == {REFUSED, IN_TIME, "requests refused in the gaps"}
    assert missed_by(replace(freezes(Gap(100, 140)), freezes=[]), AWAY) == {"freezes"}


def test_dropped_connections_count_as_a_freeze_without_duration() -> None:
    meeting = replace(AWAY, begun_at=200, ended_at=209.9)
    fault = freezes(Gap(100, 140), Gap(200, 200))
    assert missed_by(fault, AWAY, meeting, replace(LATER, begun_at=211, ended_at=212)) == set()
    hung = replace(meeting, ended_at=210.1)
    assert missed_by(fault, AWAY, hung, replace(LATER, begun_at=211, ended_at=212)) == {
        IN_TIME, "last failure after the database was back", "slow requests 10 s after the database was back",
    }  # fmt: skip


@pytest.mark.parametrize(("forgets", "orders"), [(False, ["freeze", "thaw"]), (True, ["freeze", "forget", "thaw"])])
def test_a_freeze_ends_by_a_thaw_even_if_connections_are_dropped(forgets: bool, orders: list[str]) -> None:
    given: list[str] = []

    class Proxy:
        def __getattr__(self, order: str) -> Callable[[], None]:
            return lambda: given.append(order)

    fault = Freezes(cast("TcpProxy", Proxy()), SAME, [], print)
    asyncio.run(fault._freeze_once(Freeze(0, forgets)))
    assert given == orders
    assert len(fault.gaps) == 1


def test_a_connection_to_a_demoted_primary_is_noticed_and_its_statement_shown() -> None:
    assert missed_by(demotions((0, ""), (0, "")), AWAY, replace(AWAY, begun_at=151, ended_at=152)) == set()
    fault = demotions((2, "LISTEN outbox"))
    assert missed_by(fault, AWAY) == {"connections to the old primary after 5 s"}
    assert "2 (LISTEN outbox)" in [one.figure for one in fault.judged([], NO_BOOK, [])]
    assert missed_by(replace(demotions((0, "")), left=[]), AWAY) == {"connections to the old primary after 5 s"}


def arguments(monkeypatch: pytest.MonkeyPatch, *given: str) -> Any:
    monkeypatch.setattr("sys.argv", ["chaos", *given])
    return chaos._arguments()


def test_a_pooler_is_for_kills_and_a_freeze_has_fewer_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pgbouncer, "program", lambda: "/usr/sbin/pgbouncer")
    assert arguments(monkeypatch, "kills", "--pooler").commands_per_second == 20
    assert arguments(monkeypatch, "frozen").commands_per_second == 5
    assert arguments(monkeypatch, "frozen", "--commands-per-second", "7").commands_per_second == 7
    with pytest.raises(SystemExit):
        arguments(monkeypatch, "failover", "--pooler")
