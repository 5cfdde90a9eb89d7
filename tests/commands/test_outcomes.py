"""The state and the outcome of a command, and the time that its phones have for it."""

from datetime import datetime
from itertools import product
from typing import Any, Final

import pytest
from django.db.models.functions import Now

from commands import finishing, queue
from commands.models import Command, Delivery
from tests.support.actors import Admin, Phone
from tests.support.moments import let_pass
from tests.support.outcomes import expected

STATES: Final = ("open", "completed", "expired", "cancelled")
OUTCOMES: Final = ("succeeded", "partial", "failed", "expired", "cancelled")
HOUR: Final = 3600


def issue(admin: Admin, to: Any, action: str = "ping", **fields: Any) -> str:
    answer = admin.command(action, to=to, **fields)
    assert answer.status == 200, answer.body
    return str(answer.json["request_id"])


def standing(admin: Admin, request_id: str) -> tuple[str, str | None]:
    """Return state and outcome, which must be the same in list and detail."""
    detail = admin.get(f"/admin/commands/{request_id}").json
    (listed,) = [one for one in admin.get("/admin/commands").json["items"] if one["request_id"] == request_id]
    assert (listed["state"], listed["outcome"]) == (detail["state"], detail["outcome"])
    return detail["state"], detail["outcome"]


def found(admin: Admin, **query: str) -> set[str]:
    parameters = "&".join(f"{name}={value}" for name, value in query.items())
    return {one["request_id"] for one in admin.get(f"/admin/commands?limit=500&{parameters}").json["items"]}


def test_a_command_has_no_outcome_while_anything_of_it_is_open(admin: Admin, phone: Phone) -> None:
    request_id = issue(admin, [phone, admin.enrol("phone-2")])
    assert standing(admin, request_id) == ("open", None)
    phone.report(request_id, "failed")
    assert standing(admin, request_id) == ("open", None)


@pytest.mark.parametrize(
    ("words", "outcome"),
    [
        (("succeeded", "succeeded"), "succeeded"),
        (("succeeded", "failed"), "partial"),
        (("failed", "failed"), "failed"),
        (("succeeded", None), "partial"),
        (("failed", None), "failed"),
    ],
)
def test_reports_in_time_decide_the_outcome(
    admin: Admin, phone: Phone, words: tuple[str | None, ...], outcome: str
) -> None:
    phones = [phone, admin.enrol("phone-2")]
    request_id = issue(admin, phones)
    for one, word in zip(phones, words, strict=True):
        if word is not None:
            one.report(request_id, word)
    if None in words:
        let_pass(hours=2)
    assert standing(admin, request_id) == ("completed", outcome)


def test_a_wipe_whose_time_is_over_is_expired_and_never_listed_as_completed(admin: Admin, phone: Phone) -> None:
    request_id = issue(admin, phone, "wipe", expires_in_seconds=60)
    let_pass(hours=2)
    assert Delivery.objects.get().state == "pending"
    assert standing(admin, request_id) == ("expired", "expired")
    assert found(admin, state="expired") == found(admin, outcome="expired") == {request_id}
    assert found(admin, state="completed") == found(admin, outcome="succeeded") == set()


@pytest.mark.parametrize("word", ["succeeded", "failed"])
def test_a_late_final_report_changes_neither_state_nor_outcome(admin: Admin, phone: Phone, word: str) -> None:
    request_id = issue(admin, phone)
    let_pass(hours=2)
    assert phone.report(request_id, word).json["late"] is True
    assert standing(admin, request_id) == ("expired", "expired")


def test_a_cancelled_command_keeps_the_outcome_of_its_results(admin: Admin, phone: Phone) -> None:
    request_id = issue(admin, [phone, admin.enrol("phone-2")])
    phone.report(request_id, "succeeded")
    admin.post(f"/admin/commands/{request_id}/cancel")
    assert standing(admin, request_id) == ("cancelled", "partial")


@pytest.mark.parametrize("by", ["cancel", "supersede", "revoke"])
def test_a_command_whose_deliveries_are_all_withdrawn_is_cancelled(admin: Admin, phone: Phone, by: str) -> None:
    request_id = issue(admin, phone)
    if by == "cancel":
        admin.post(f"/admin/commands/{request_id}/cancel")
    elif by == "supersede":
        issue(admin, phone, supersede=True)
    else:
        admin.post(f"/admin/devices/{phone.device_id}/revoke")
    assert standing(admin, request_id) == ("cancelled", "cancelled")


KINDS: Final = ("pending", "overdue", "received", "succeeded", "failed", "expired", "cancelled")


def put(delivery: Delivery, kind: str) -> None:
    """Bring the row of a delivery into a state; `overdue`: its time is over, but the row is not marked yet."""
    settled = kind not in ("pending", "overdue", "received")
    changes: dict[str, Any] = {"state": kind, "settled_at": Now() if settled else None, "next_attempt_at": None}
    if kind == "overdue":
        changes = {"state": "pending", "open_until": "2026-01-01T00:00:00Z"}
    Delivery.objects.filter(pk=delivery.pk).update(**changes)


def test_lists_filters_and_details_agree_for_every_mix_of_states(admin: Admin, phone: Phone) -> None:
    fleet = [phone, admin.enrol("phone-2"), admin.enrol("phone-3")]
    stands: dict[str, tuple[str, str | None]] = {}
    mixes = {tuple(sorted(mix)) for mix in product(KINDS, repeat=len(fleet))}
    for number, (mix, was_cancelled) in enumerate(product(sorted(mixes), (False, True))):
        command = Command.objects.create(
            action="ping", params="{}", target={"all": True}, issued_by="admin", device_count=len(fleet),
            issued_at="2026-01-01T00:00:00Z", expires_at="2099-01-01T00:00:00Z",
            cancelled_at="2026-01-02T00:00:00Z" if was_cancelled else None, note=str(number),
        )  # fmt: skip
        for one, kind in zip(fleet, mix, strict=True):
            delivery = Delivery.objects.create(
                command=command, device_id=one.device_id, open_until=command.expires_at, push_state="no_push_token"
            )
            put(delivery, kind)
        stands[str(command.pk)] = expected(set(mix), was_cancelled=was_cancelled)

    assert_shown(admin, stands)
    # The same check with stored ends: first only of commands whose deliveries are all marked, then of all commands.
    written = finishing.finish(1000)
    assert_shown(admin, stands)
    queue.expire(1000)
    written += finishing.finish(1000)
    assert_shown(admin, stands)
    assert written == len([state for state, _ in stands.values() if state != "open"])
    assert Command.objects.filter(finished_at=None).count() == len(stands) - written
    assert {one for stand in stands.values() for one in stand if one} == {*STATES, *OUTCOMES}


def assert_shown(admin: Admin, stands: dict[str, tuple[str, str | None]]) -> None:
    """Check the list, every filter, and some of the commands."""
    rows = admin.get("/admin/commands?limit=500").json["items"]
    assert {row["request_id"]: (row["state"], row["outcome"]) for row in rows} == stands
    succeeded = {row["request_id"]: row["succeeded"] for row in rows}
    for state in STATES:
        assert found(admin, state=state) == {key for key, one in stands.items() if one[0] == state}
    for outcome in OUTCOMES:
        assert found(admin, outcome=outcome) == {key for key, one in stands.items() if one[1] == outcome}
    for key in list(stands)[::7]:
        detail = admin.get(f"/admin/commands/{key}").json
        assert (detail["state"], detail["outcome"]) == stands[key]
        assert detail["counts"]["succeeded"] == succeeded[key]


def test_an_unknown_outcome_is_refused(admin: Admin) -> None:
    answer = admin.get("/admin/commands?outcome=completed")
    assert (answer.status, answer.json["errors"][0]["loc"]) == (422, ["query", "outcome"])


@pytest.mark.parametrize(
    ("action", "seconds"),
    [("ping", 600), ("reboot", HOUR), ("lock", 28 * 24 * HOUR), ("wipe", 28 * 24 * HOUR)],
)
def test_the_default_of_expires_in_seconds_depends_on_the_action(
    admin: Admin, phone: Phone, action: str, seconds: int
) -> None:
    said: list[tuple[dict[str, Any], int]] = [
        ({}, seconds), ({"expires_in_seconds": None}, seconds), ({"expires_in_seconds": 5}, 5),
    ]  # fmt: skip
    for given, expected_seconds in said:
        command = admin.command(action, to=phone, **given).json
        lives = datetime.fromisoformat(command["expires_at"]) - datetime.fromisoformat(command["issued_at"])
        assert expected_seconds <= lives.total_seconds() <= expected_seconds + 1
