"""A server that has become read-only, like a demoted primary: it counts as unavailable, and its connections end."""

import re
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest
from django.conf import settings as django_settings
from django.contrib.auth import get_user_model
from django.core.management import call_command

from commands.models import Attempt, Delivery
from commands.push import attempts
from loadtest.fake_fcm.server import FcmStandin
from nexmdm.common.postgresql import outage
from nexmdm.standalone import embedded_postgres
from tests.support.actors import Admin, Client, Visitor

Switch = Callable[[str], None]


@pytest.fixture
def read_only(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Switch]:
    """Switch the whole server to read-only ("on"), or back ("off"), including open sessions."""
    monkeypatch.setattr(outage, "HELD_OFF_SECONDS", 0)
    with psycopg.connect(embedded_postgres.url(django_settings.DATA_DIR), autocommit=True) as connection:

        def switch(state: str) -> None:
            connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {state}".encode())
            connection.execute("SELECT pg_reload_conf()")
            while connection.execute("SHOW default_transaction_read_only").fetchone() != (state,):
                pass

        yield switch
        connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
        connection.execute("SELECT pg_reload_conf()")


def sessions() -> set[int]:
    """Return the processes of PostgreSQL that serve our pool."""
    with psycopg.connect(embedded_postgres.url(django_settings.DATA_DIR), autocommit=True) as connection:
        statement = "SELECT pid FROM pg_stat_activity WHERE application_name = 'nexmdm'"
        return {pid for (pid,) in connection.execute(statement)}


def ended(before: set[int]) -> bool:
    """Wait until none of these processes serves us any more: a session ends a moment after its connection."""
    give_up_at = time.monotonic() + 5
    while before & sessions() and time.monotonic() < give_up_at:
        pass
    return not before & sessions()


def test_phones_and_admins_get_503_while_the_database_accepts_no_writes_and_are_served_right_after(
    read_only: Switch, admin: Admin
) -> None:
    phone = admin.enrol("phone-1")
    request_id = admin.command("ping", to=phone).json["request_id"]
    assert phone.heartbeat().status == 200

    read_only("on")
    stayed_on = sessions()
    answers = [phone.heartbeat(), phone.report(request_id, "succeeded"), admin.command("ping", to=phone)]
    assert [(answer.status, answer.code) for answer in answers] == [(503, "database_unavailable")] * 3
    assert stayed_on
    assert ended(stayed_on)

    read_only("off")
    assert (phone.heartbeat().status, phone.report(request_id, "succeeded").status) == (200, 200)
    assert Delivery.objects.get().state == "succeeded"


def test_the_admin_site_answers_503_to_requests_that_write(read_only: Switch) -> None:
    get_user_model().objects.create_superuser("root", password="a-Password-1")
    signed_in = Visitor().log_in("root", "a-Password-1")
    session = re.search(r"sessionid=(\w+)", signed_in.headers["set-cookie"])
    assert session is not None, signed_in
    visitor = Visitor(session=session[1])
    page = visitor.request("GET", "/django-admin/password_change/")
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.body.decode())
    assert token is not None, page

    read_only("on")
    words = {"csrfmiddlewaretoken": token[1]}
    stayed_on = sessions()
    answer = visitor.post_form("/django-admin/logout/", words, page.headers["set-cookie"])
    assert (answer.status, answer.code) == (503, "database_unavailable")
    assert ended(stayed_on)


def test_readiness_reports_a_read_only_database_as_unavailable(read_only: Switch, client: Client) -> None:
    assert client.request("GET", "/readyz").json["database"] == "ok"
    read_only("on")
    answer = client.request("GET", "/readyz")
    assert (answer.status, answer.json["database"]) == (503, "unavailable")


def test_a_dispatcher_keeps_its_answers_until_the_database_accepts_writes_again(
    read_only: Switch, admin: Admin, fcm: FcmStandin, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin.command("ping", to=admin.enrol("phone-1", push_token="ok-1"))
    record, tries = attempts.record_attempts, iter(("on", "off"))

    def recorded(*arguments: object) -> None:
        if state := next(tries, ""):
            read_only(state)
        record(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("commands.push.recorder.RETRY_SECONDS", 0)
    monkeypatch.setattr(attempts, "record_attempts", recorded)
    call_command("dispatch", once=True)
    assert (Attempt.objects.get().outcome, Delivery.objects.get().push_state) == ("accepted", "accepted")
