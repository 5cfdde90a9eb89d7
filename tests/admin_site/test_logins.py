"""Logins to the admin site: their limits, and the resources that they must leave to the control loop."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_network
from typing import Any, Final

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.core.cache import cache
from django.db import OperationalError, connection
from django.test.utils import CaptureQueriesContext
from django.utils import crypto
from pytest_django import Settings
from structlog.testing import capture_logs

from nexmdm.admin_site import passwords, turns
from nexmdm.asgi import application
from nexmdm.common.overload.gates import Gate
from nexmdm.http import admin_site_handler
from tests.support.actors import LOGIN, Admin, Answer, Client, Phone, Visitor

PASSWORD: Final = "correct horse battery"
FULL: Final = partial(Gate, "of-this-test", at_once=0, waiting=0, waiting_per_key=0, seconds=0)


@dataclass
class Hashes:
    """The hashes of a test, and how many connections the pool had given out while each was computed."""

    connections: list[int] = field(default_factory=list)

    @property
    def made(self) -> int:
        return len(self.connections)

    def pbkdf2(self, *args: Any, **kwargs: Any) -> bytes:
        self.connections.append(connections_in_use())
        return crypto.pbkdf2(*args, **kwargs)


def connections_in_use() -> int:
    pool: Any = connection.pool  # type: ignore[attr-defined]
    stats = pool.get_stats()
    return int(stats["pool_size"] - stats["pool_available"])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove work that only costs time."""
    monkeypatch.setattr(passwords.PasswordHasher, "iterations", 2)
    monkeypatch.setattr(admin_site_handler, "REFUSAL_SECONDS", 0)


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> Hashes:
    hashes = Hashes()
    monkeypatch.setattr("django.contrib.auth.hashers.pbkdf2", hashes.pbkdf2)
    return hashes


@pytest.fixture
def staff(db: None) -> User:
    cache.clear()
    return User.objects.create_superuser("root", password=PASSWORD)


def assert_problem(answer: Answer, status: int, code: str) -> None:
    assert (answer.status, answer.code) == (status, code), answer
    assert int(answer.headers["retry-after"]) >= 1


def test_beyond_the_limit_of_an_address_no_password_is_hashed_even_if_it_is_right(
    staff: User, hashes: Hashes, settings: Settings
) -> None:
    settings.LOGIN_RATE_LIMIT = "3/d"
    visitor = Visitor("192.0.2.1")
    assert [visitor.log_in("root", "wrong").status for _ in range(3)] == [200] * 3
    made = hashes.made
    for word in ("wrong", PASSWORD, PASSWORD):
        assert_problem(visitor.log_in("root", word), 429, "rate_limited")
    assert hashes.made == made
    assert Visitor("192.0.2.2").log_in("root", PASSWORD).status == 302


def test_logins_beyond_the_limit_make_no_queries(staff: User, settings: Settings) -> None:
    settings.LOGIN_RATE_LIMIT = "1/d"
    attempts = [partial(Visitor().post_form, LOGIN, {}, "") for _ in range(5)]
    assert [attempt().status for attempt in attempts[:2]] == [403, 429]
    with CaptureQueriesContext(connection) as queries:
        assert [attempt().status for attempt in attempts[2:]] == [429] * 3
    assert list(queries) == []


def test_successful_logins_count_too(staff: User, settings: Settings) -> None:
    settings.LOGIN_RATE_LIMIT = "2/d"
    assert [Visitor().log_in("root", PASSWORD).status for _ in range(3)] == [302, 302, 429]


def test_an_attempt_to_change_a_password_counts_as_a_login(staff: User, settings: Settings) -> None:
    settings.LOGIN_RATE_LIMIT = "1/d"
    session = Visitor().log_in("root", PASSWORD).headers["set-cookie"].partition(";")[0]
    answer = Visitor(session=session.partition("=")[2]).post_form("/django-admin/password_change/", {}, "")
    assert_problem(answer, 429, "rate_limited")


def test_logins_and_failures_of_the_api_are_counted_separately(staff: User, settings: Settings) -> None:
    settings.LOGIN_RATE_LIMIT = settings.AUTH_FAILURE_RATE_LIMIT = "1/d"
    for _ in range(3):
        Phone(Client(), "phone-1", device_token="nxd_wrong").heartbeat()
    assert Visitor().log_in("root", "wrong").status == 200
    cache.clear()
    for _ in range(3):
        Visitor("192.0.2.1").log_in("root", "wrong")
    assert Phone(Client("192.0.2.1"), "phone-1", device_token="nxd_wrong").heartbeat().code == "invalid_token"


def test_logins_through_a_proxy_are_counted_by_the_clients_address(staff: User, settings: Settings) -> None:
    settings.LOGIN_RATE_LIMIT, settings.TRUSTED_PROXIES = "2/m", [ip_network("10.0.0.0/8")]
    proxy = Visitor("10.0.0.1")
    statuses = [proxy.log_in("root", "wrong", **{"X-Forwarded-For": "192.0.2.7"}).status for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert proxy.log_in("root", "wrong", **{"X-Forwarded-For": "192.0.2.8"}).status == 200


def log_in_as_nobody(staff: User) -> int:
    return Visitor().log_in("nobody", PASSWORD).status


def log_in(staff: User) -> int:
    return Visitor().log_in("root", PASSWORD).status


def log_in_with_an_old_hash(staff: User) -> int:
    User.objects.update(password=passwords.PasswordHasher().encode(PASSWORD, "salt", 1))
    status = log_in(staff)
    staff.refresh_from_db()
    assert staff.password.split("$")[1] == "2", "it was not renewed"
    return status


def change_the_password(staff: User) -> int:
    answer = Visitor().log_in("root", PASSWORD)
    visitor = Visitor(session=answer.headers["set-cookie"].partition(";")[0].partition("=")[2])
    token = "t" * 32
    words = {"old_password": PASSWORD, "new_password1": "another long one", "new_password2": "another long one"}
    page = "/django-admin/password_change/"
    return visitor.post_form(page, {**words, "csrfmiddlewaretoken": token}, f"csrftoken={token}").status


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("act", "status", "count"),
    [(log_in_as_nobody, 200, 1), (log_in, 302, 1), (log_in_with_an_old_hash, 302, 3), (change_the_password, 302, 3)],
)
def test_no_connection_is_kept_while_a_password_is_hashed(
    staff: User, hashes: Hashes, act: Callable[[User], int], status: int, count: int
) -> None:
    hashes.connections.clear()
    assert act(staff) == status
    assert hashes.connections == [0] * count


def test_a_full_site_answers_with_a_problem_and_the_api_continues(
    admin: Admin, staff: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "SITE", FULL())
    for path in ("/django-admin/", LOGIN, "/django-admin/nothing"):
        assert_problem(Visitor().request("GET", path), 503, "overloaded")
    assert admin.get("/admin/summary").status == 200


def test_if_too_many_hashes_wait_a_login_is_503_and_pages_still_work(
    staff: User, hashes: Hashes, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.LOGIN_RATE_LIMIT = "1/d"
    made = hashes.made
    with monkeypatch.context() as patch:
        patch.setattr(admin_site_handler, "PASSWORDS", FULL())
        for _ in range(2):
            assert_problem(Visitor().log_in("root", PASSWORD), 503, "overloaded")
        assert Visitor().request("GET", LOGIN).status == 200
    assert hashes.made == made
    assert Visitor().log_in("root", PASSWORD).status == 302, "what was refused so counts as no attempt"


def test_an_address_with_many_requests_leaves_places_to_others(staff: User, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate("of-this-test", at_once=1, waiting=4, waiting_per_key=2, seconds=60)
    monkeypatch.setattr(turns, "SITE", gate)

    async def gathered() -> list[Answer]:
        await gate.enter("somebody's")
        calls = [Client(address).arequest("GET", "/django-admin/") for address in ("192.0.2.1",) * 9 + ("192.0.2.2",)]
        tasks = [asyncio.create_task(call) for call in calls]
        for _ in range(20):
            await asyncio.sleep(0)
        gate.leave("somebody's")
        return await asyncio.gather(*tasks)

    statuses = [answer.status for answer in async_to_sync(gathered)()]
    assert (statuses[:-1].count(302), statuses[:-1].count(503), statuses[-1]) == (2, 7, 302)


@pytest.fixture
def session(staff: User) -> str:
    """The cookie of a session."""
    return Visitor().log_in("root", PASSWORD).headers["set-cookie"].partition(";")[0].partition("=")[2]


@pytest.fixture
def exhausted_pool(db: None, settings: Settings) -> Iterator[None]:
    """A pool whose connections are all in use."""
    pool: Any = connection.pool  # type: ignore[attr-defined]
    timeout, pool.timeout = pool.timeout, 0.01
    taken = [pool.getconn(5) for _ in range(settings.DATABASE_POOL_SIZE - connections_in_use())]
    yield
    pool.timeout = timeout
    for one in taken:
        pool.putconn(one)


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("exhausted_pool")
def test_without_a_free_connection_the_site_answers_with_a_problem_and_no_traceback(
    capfd: pytest.CaptureFixture[str],
) -> None:
    connection.close()
    answers = [Visitor(session="x" * 32).request("GET", path) for path in ("/django-admin/", "/django-admin/devices/")]
    answers.append(Visitor().post_form(LOGIN, {"username": "root"}, ""))
    for answer in answers:
        assert_problem(answer, 503, "database_unavailable")
    assert "Traceback" not in capfd.readouterr().out


def test_a_server_error_on_the_site_is_a_problem_and_not_a_page(
    staff: User, session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexmdm.admin_site.dashboard.home", lambda: 1 / 0)
    answer = Visitor(session=session).request("GET", "/django-admin/")
    assert (answer.status, answer.code) == (500, "internal")


@pytest.mark.django_db(transaction=True)
def test_a_slow_reader_of_a_page_occupies_neither_a_connection_nor_a_place(
    staff: User, session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate("of-this-test", at_once=1, waiting=0, waiting_per_key=0, seconds=0)
    monkeypatch.setattr(turns, "SITE", gate)
    connection.close()
    held: list[int] = []

    incoming = [{"type": "http.request", "body": b""}]

    async def receive() -> Any:
        return incoming.pop() if incoming else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        assert message.get("status", 200) == 200
        await gate.enter("another")
        gate.leave("another")
        held.append(connections_in_use())

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
        "path": "/django-admin/", "raw_path": b"/django-admin/", "query_string": b"", "root_path": "",
        "headers": [(b"host", b"localhost"), (b"cookie", f"sessionid={session}".encode())],
        "client": ("127.0.0.1", 40000), "server": ("127.0.0.1", 8000),
    }  # fmt: skip
    async_to_sync(application)(scope, receive, send)
    assert set(held) == {0}


def test_each_login_is_logged_and_only_a_successful_one_with_its_user(staff: User) -> None:
    with capture_logs() as lines:
        Visitor("192.0.2.1").log_in("my-password", "wrong")
        Visitor("192.0.2.2").log_in("root", PASSWORD)
    noted = [line for line in lines if line["event"] == "site.login"]
    assert [(line["good"], line["address"], line.get("username")) for line in noted] == [
        (False, "192.0.2.1", None),
        (True, "192.0.2.2", "root"),
    ]
    assert "my-password" not in str(lines)


def test_a_login_that_cannot_be_counted_is_503(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise OperationalError("connection refused")

    monkeypatch.setattr("django.db.connection.ensure_connection", refuse)
    assert_problem(Visitor().post_form(LOGIN, {}, ""), 503, "database_unavailable")
