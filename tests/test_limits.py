"""How often one may call, and fail."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from django.core.cache import cache
from django.db import connection, connections
from pytest_django import Settings

from commands.models import Command
from nexmdm import counters
from tests.actors import Admin, Client, Phone


def test_beyond_the_limit_a_failure_is_429_and_says_when_to_come_back(db: None, settings: Settings) -> None:
    settings.AUTH_FAILURE_RATE_LIMIT = "3/m"
    stranger = Phone(Client("192.0.2.1"), "phone-1", device_token="nxd_wrong")
    answers = [stranger.heartbeat() for _ in range(5)]
    assert [answer.code for answer in answers] == ["invalid_token"] * 3 + ["rate_limited"] * 2
    assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in answers[3:])


def test_a_good_credential_passes_from_an_address_that_has_failed_too_often(
    admin: Admin, phone: Phone, settings: Settings
) -> None:
    settings.AUTH_FAILURE_RATE_LIMIT = "1/m"
    for _ in range(3):
        admin.client.request("POST", "/v1/heartbeat", {}, {"Authorization": "Bearer nxd_wrong"})
    assert phone.heartbeat().status == 200
    assert admin.get("/admin/summary").status == 200


def test_the_failures_of_one_address_do_not_count_for_another(db: None, settings: Settings) -> None:
    settings.AUTH_FAILURE_RATE_LIMIT = "1/m"
    for _ in range(2):
        Phone(Client("192.0.2.1"), "phone-1", device_token="nxd_wrong").heartbeat()
    assert Phone(Client("192.0.2.2"), "phone-1", device_token="nxd_wrong").heartbeat().code == "invalid_token"


@pytest.mark.parametrize("wrong", ["key", "secret"])
def test_a_bad_signature_counts_as_a_failure(admin: Admin, settings: Settings, wrong: str) -> None:
    settings.AUTH_FAILURE_RATE_LIMIT = "1/m"
    setattr(admin, wrong, "not-this-one-but-long-enough-to-be-one")
    assert [admin.get("/admin/summary").code for _ in range(2)] == ["invalid_signature", "rate_limited"]


def test_signed_writes_beyond_the_limit_are_429_and_do_nothing(admin: Admin, phone: Phone, settings: Settings) -> None:
    settings.ADMIN_RATE_LIMIT = "2/h"
    answers = [admin.command("ping", to=phone) for _ in range(3)]
    assert [answer.code for answer in answers] == [None, None, "rate_limited"]
    assert int(answers[2].headers["retry-after"]) >= 1
    assert Command.objects.count() == 2


def test_reads_have_a_limit_of_their_own(admin: Admin, settings: Settings) -> None:
    settings.ADMIN_READ_RATE_LIMIT = "1/h"
    assert [admin.get("/admin/summary").code for _ in range(2)] == [None, "rate_limited"]
    assert admin.post("/admin/enrollment-tokens", {}).status == 200


@pytest.mark.django_db(transaction=True)
def test_parallel_callers_are_counted_exactly() -> None:
    def count(_: int) -> int:
        try:
            return 1 if cache.add("shared", 1, 60) else cache.incr("shared")
        finally:
            connections.close_all()

    with ThreadPoolExecutor(8) as threads:
        counted = sorted(threads.map(count, range(200)))
    assert counted == list(range(1, 201))


def test_a_counter_starts_anew_when_its_time_is_over(db: None) -> None:
    assert cache.add("mine", 1, 60)
    assert not cache.add("mine", 1, 60)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE nexmdm_counter SET expires_at = now()")
    assert (cache.get("mine"), counters.forget_expired()) == (None, 1)
    assert cache.add("mine", 1, 60)
