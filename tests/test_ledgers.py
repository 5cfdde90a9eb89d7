"""The comparison of the three ledgers notices each kind of loss: a chaos run that cannot fail would prove nothing."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from loadtest.crowd import Account
from loadtest.ledgers import Book, compare
from loadtest.roster import Member

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
MEMBERS = [Member("device-1", "nxd", "key", "ok-1"), Member("device-2", "nxd", "key", "ok-2")]


class World:
    """Two phones, one command to both: pushed, answered, settled. Each test spoils one thing."""

    def __init__(self) -> None:
        self.account = Account(
            sent={"chaos 1"},
            accepted={"command-1": frozenset({"device-1", "device-2"})},
            results={("command-1", "device-1")},
            heard={"device-1": NOW.isoformat()},
        )
        self.book = Book(
            commands=[("command-1", "chaos 1")],
            deliveries=[
                (1, "command-1", "device-1", "succeeded", False),
                (2, "command-1", "device-2", "pending", True),
            ],
            attempts={1: [("accepted", "m1")], 2: [("unknown", ""), ("accepted", "m3")]},
            results=frozenset({("command-1", "device-1")}),
            seen={"device-1": NOW},
        )
        self.sends = [send("ok-1", "m1"), send("ok-2", "m2"), send("ok-2", "m3")]

    def missed(self) -> set[str]:
        return {one.name for one in compare(self.account, self.book, self.sends, MEMBERS) if not one.held}


def send(push_token: str, message_id: str, *, answer: str = "ok", late: bool = False) -> dict[str, Any]:
    at = NOW + timedelta(hours=1 if late else 0)
    data = {"expires_at": (NOW + timedelta(minutes=10)).isoformat()}
    return {
        "push_token": push_token,
        "request_id": "command-1",
        "message_id": message_id,
        "answer": answer,
        "at": at.timestamp(),
        "message": {"data": data},
    }


def lose_the_command(world: World) -> None:
    world.book = replace(world.book, commands=[])


def lose_a_delivery(world: World) -> None:
    world.book = replace(world.book, deliveries=world.book.deliveries[:1])


def carry_out_a_post_twice(world: World) -> None:
    world.book = replace(world.book, commands=[*world.book.commands, ("command-2", "chaos 1")])


def never_answer_a_post(world: World) -> None:
    world.account.unanswered = 1


def push_without_an_attempt(world: World) -> None:
    world.book = replace(world.book, attempts=world.book.attempts | {1: []})


def invent_an_acceptance(world: World) -> None:
    world.book = replace(world.book, attempts=world.book.attempts | {1: [("accepted", "m9")]})


def push_too_late(world: World) -> None:
    world.sends[0] = send("ok-1", "m1", late=True)


def leave_an_attempt_in_flight(world: World) -> None:
    world.book = replace(world.book, attempts=world.book.attempts | {3: [("in_flight", "")]})


def push_after_an_acceptance(world: World) -> None:
    world.book = replace(world.book, attempts=world.book.attempts | {2: [("accepted", "m2"), ("accepted", "m3")]})


def push_twice_though_nothing_was_unknown(world: World) -> None:
    world.book = replace(world.book, attempts=world.book.attempts | {2: [("retry_later", ""), ("accepted", "m3")]})


def forget_what_a_delivery_waits_for(world: World) -> None:
    world.book = replace(
        world.book, deliveries=[world.book.deliveries[0], (2, "command-1", "device-2", "pending", False)]
    )


def lose_a_result(world: World) -> None:
    world.book = replace(world.book, results=frozenset())


def lose_a_heartbeat(world: World) -> None:
    world.book = replace(world.book, seen={"device-1": NOW - timedelta(seconds=1)})


def test_a_world_in_order_holds_every_promise() -> None:
    assert World().missed() == set()


@pytest.mark.parametrize(
    ("spoil", "promise"),
    [
        (lose_the_command, "accepted commands are in the database"),
        (lose_a_delivery, "with a delivery for each of their devices"),
        (carry_out_a_post_twice, "commands there twice, or sent by nobody"),
        (never_answer_a_post, "POSTs that never got an answer"),
        (push_without_an_attempt, "pushes that arrived have an attempt each"),
        (invent_an_acceptance, "attempts called accepted are FCM's"),
        (push_too_late, "pushes after the time of their command"),
        (leave_an_attempt_in_flight, "attempts still in flight"),
        (push_after_an_acceptance, "attempts after one that FCM took"),
        (push_twice_though_nothing_was_unknown, "messages FCM took twice, no attempt unknown"),
        (forget_what_a_delivery_waits_for, "deliveries settled, or waiting for something"),
        (lose_a_result, "results that were taken are in the database"),
        (lose_a_heartbeat, "heartbeats that were answered are kept"),
    ],
)
def test_each_loss_is_noticed_under_its_name(spoil: Callable[[World], None], promise: str) -> None:
    world = World()
    spoil(world)
    assert promise in world.missed()


def test_a_message_refused_for_its_access_token_is_one_attempt_with_the_next() -> None:
    world = World()
    world.sends.insert(0, send("ok-1", "", answer="unauthenticated"))
    assert world.missed() == set()
