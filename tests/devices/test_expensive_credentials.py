"""bcrypt: a request that can be refused without a hash costs no hash, and no client blocks the others."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Lock
from typing import Any, Final
from uuid import UUID

import pytest
from asgiref.sync import async_to_sync
from django.utils import timezone
from prometheus_client import REGISTRY

from devices import credentials, token_check, tokens
from devices.credentials import NewSecret, Verifier
from devices.models import Device, EnrollmentToken
from nexmdm.common.overload.gates import Gate
from tests.support.actors import Admin, Answer, Client, Phone
from tests.support.moments import releasing_connection

_new_secret, _matches_hash = credentials.new_secret, Verifier.matches_hash
GATE: Final = "of-this-test"


class Hashes:
    """The bcrypt hashes of a test: their number, and the largest number at the same time. The hashes can be stopped."""

    def __init__(self) -> None:
        self.made = self.under_way = self.most = 0
        self.free = Event()
        self.free.set()
        self._lock = Lock()

    @contextmanager
    def one(self) -> Iterator[None]:
        with self._lock:
            self.made += 1
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        assert self.free.wait(30)
        try:
            yield
        finally:
            with self._lock:
                self.under_way -= 1


@pytest.fixture
def new_secrets(monkeypatch: pytest.MonkeyPatch) -> Hashes:
    """The hashes of registrations and rotations."""
    hashes = Hashes()

    def counted() -> NewSecret:
        with hashes.one():
            return _new_secret()

    monkeypatch.setattr(credentials, "new_secret", counted)
    return hashes


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Hashes:
    """The hashes by which tokens are checked."""
    hashes = Hashes()

    def counted(verifier: Verifier, token: tokens.Token) -> bool:
        with hashes.one():
            return _matches_hash(verifier, token)

    monkeypatch.setattr(Verifier, "matches_hash", counted)
    return hashes


def register(text: str, hardware_id: str) -> Coroutine[Any, Any, Answer]:
    body, headers = {"hardware_id": hardware_id}, {"Authorization": f"Bearer {text}"}
    return Client().arequest("POST", "/v1/register", body, headers)


def send(path: str, device_token: str) -> Coroutine[Any, Any, Answer]:
    return Client().arequest("POST", path, {}, {"Authorization": f"Bearer {device_token}"})


def together(*calls: Coroutine[Any, Any, Answer], hold: Hashes, until: Callable[[], object]) -> list[Answer]:
    """Make calls from one running loop, as a web worker does, and stop all hashes until a condition holds."""

    async def gathered() -> list[Answer]:
        hold.free.clear()
        tasks = [asyncio.create_task(call) for call in calls]
        deadline = time.monotonic() + 10
        try:
            while not until():
                assert time.monotonic() < deadline, "it did not come to that"
                await asyncio.sleep(0)
        finally:
            hold.free.set()
        return await asyncio.gather(*tasks)

    return async_to_sync(gathered)()


def waiting(gate: Gate) -> int:
    return sum(len(state.waiters) for state in gate._states._made.values())


def spoilt(**fields: Any) -> Callable[[Admin], str]:
    """An enrollment token with one of several faults."""

    def made(admin: Admin) -> str:
        text = admin.enrollment_token()
        EnrollmentToken.objects.update(**fields)
        return text

    return made


def of_known_hardware(admin: Admin) -> str:
    admin.enrol("imei-1")
    return admin.enrollment_token()


def of_a_revoked_device(admin: Admin) -> str:
    phone = admin.enrol("imei-1")
    admin.post(f"/admin/devices/{phone.device_id}/revoke")
    return admin.enrollment_token(re_enroll=True)


def of_a_taken_alias(admin: Admin) -> str:
    admin.enrol("imei-2", alias="till 4")
    return admin.enrollment_token()


def unknown(_: Admin) -> str:
    return tokens.make(tokens.ENROLLMENT_PREFIX, UUID(int=1), bytes(32)).text


REFUSED: Final[dict[str, Callable[[Admin], str]]] = {
    "invalid_enrollment_token": unknown,
    "enrollment_token_expired": spoilt(expires_at=timezone.now() - timedelta(seconds=1)),
    "enrollment_token_exhausted": spoilt(uses=1),
    "enrollment_token_revoked": spoilt(revoked_at=timezone.now()),
    "device_revoked": of_a_revoked_device,
    "hardware_known": of_known_hardware,
    "alias_taken": of_a_taken_alias,
}


@pytest.mark.parametrize("code", REFUSED)
def test_a_registration_that_is_refused_costs_no_hash(admin: Admin, new_secrets: Hashes, code: str) -> None:
    text = REFUSED[code](admin)
    before = new_secrets.made
    answers = [Phone(admin.client, "imei-1").register(text, alias="till 4") for _ in range(20)]
    assert {answer.code for answer in answers} == {code}
    assert new_secrets.made == before


def test_an_enrollment_token_has_one_registration_in_bcrypt_at_a_time(admin: Admin, new_secrets: Hashes) -> None:
    text = admin.enrollment_token(max_uses=5)
    calls = [register(text, f"imei-{number}") for number in range(5)]
    answers = together(*calls, hold=new_secrets, until=lambda: waiting(token_check.NEW_CREDENTIALS) == 4)
    assert [answer.status for answer in answers] == [200] * 5
    assert (new_secrets.made, new_secrets.most) == (5, 1)


def test_registrations_by_different_enrollment_tokens_do_not_wait_for_each_other(
    admin: Admin, new_secrets: Hashes
) -> None:
    many, one = admin.enrollment_token(max_uses=5), admin.enrollment_token()
    calls = [*(register(many, f"imei-{number}") for number in range(5)), register(one, "imei-9")]
    answers = together(*calls, hold=new_secrets, until=lambda: new_secrets.under_way == 2)
    assert [answer.status for answer in answers] == [200] * 6
    assert new_secrets.most == 2


def test_an_enrollment_token_that_is_used_up_costs_the_waiting_requests_no_hash(
    admin: Admin, new_secrets: Hashes
) -> None:
    text = admin.enrollment_token()
    calls = [register(text, f"imei-{number}") for number in range(5)]
    answers = together(*calls, hold=new_secrets, until=lambda: waiting(token_check.NEW_CREDENTIALS) == 4)
    assert sorted(str(answer.code) for answer in answers) == ["None"] + ["enrollment_token_exhausted"] * 4
    assert (new_secrets.made, Device.objects.count()) == (1, 1)


def test_registrations_beyond_those_that_may_wait_are_503_and_consume_no_use(
    admin: Admin, new_secrets: Hashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_check, "NEW_CREDENTIALS", Gate(GATE, at_once=1, waiting=0, waiting_per_key=0, seconds=60))
    texts = [admin.enrollment_token() for _ in range(3)]
    calls = [register(text, f"imei-{number}") for number, text in enumerate(texts)]
    answers = sorted(together(*calls, hold=new_secrets, until=refused(2)), key=lambda answer: answer.status)
    assert [(answer.status, answer.code) for answer in answers] == [(200, None), *[(503, "overloaded")] * 2]
    assert int(answers[1].headers["retry-after"]) >= 1
    assert sum(EnrollmentToken.objects.values_list("uses", flat=True)) == new_secrets.made == 1


def refused(times: int) -> Callable[[], bool]:
    """Return a condition: the gate of this test has refused this number of requests from now on."""
    before = REGISTRY.get_sample_value("nexmdm_gate_refused_total", {"gate": GATE}) or 0.0
    return lambda: REGISTRY.get_sample_value("nexmdm_gate_refused_total", {"gate": GATE}) == before + times


def test_a_check_of_a_token_does_not_wait_behind_registrations(admin: Admin, new_secrets: Hashes) -> None:
    phone, texts = admin.enrol("phone-1"), [admin.enrollment_token() for _ in range(8)]
    Device.objects.update(token_digest=None, token_digest_key="")
    calls = [register(text, f"imei-{number}") for number, text in enumerate(texts)]
    beats: list[Answer] = []

    async def beat() -> Answer:
        beats.append(await send("/v1/heartbeat", phone.device_token))
        return beats[0]

    answers = together(*calls, beat(), hold=new_secrets, until=lambda: beats)
    assert [answer.status for answer in answers] == [200] * 9


def test_a_device_has_one_check_in_bcrypt_at_a_time_and_those_that_waited_need_none(
    phone: Phone, checks: Hashes
) -> None:
    Device.objects.update(token_digest=None, token_digest_key="")
    calls = [send("/v1/token/rotate", phone.device_token) for _ in range(4)]
    answers = together(*calls, hold=checks, until=lambda: waiting(token_check.TOKEN_CHECKS) == 3)
    assert [answer.status for answer in answers] == [200] * 4
    assert (checks.made, checks.most) == (1, 1)


def test_a_wrong_token_during_a_rotation_costs_no_check(phone: Phone, checks: Hashes) -> None:
    phone.rotate()
    wrong = tokens.make(tokens.DEVICE_PREFIX, UUID(phone.device_id), bytes(32)).text
    assert phone.send("/v1/heartbeat", {}, wrong).code == "invalid_token"
    assert checks.made == 0


def test_a_device_has_one_rotation_in_bcrypt_at_a_time(phone: Phone, new_secrets: Hashes) -> None:
    before = new_secrets.made
    calls = [send("/v1/token/rotate", phone.device_token) for _ in range(5)]
    answers = together(*calls, hold=new_secrets, until=lambda: waiting(token_check.NEW_CREDENTIALS) == 4)
    assert [answer.status for answer in answers] == [200] * 5
    assert (new_secrets.made - before, new_secrets.most) == (5, 1)


def test_more_than_ten_rotations_an_hour_are_429_and_cost_no_hash(
    admin: Admin, phone: Phone, new_secrets: Hashes
) -> None:
    other = admin.enrol("phone-2")
    before = new_secrets.made
    answers = [phone.rotate() for _ in range(13)]
    assert [answer.code for answer in answers] == [None] * 10 + ["rate_limited"] * 3
    assert all(1 <= int(answer.headers["retry-after"]) <= 3600 for answer in answers[10:])
    assert new_secrets.made - before == 10
    assert phone.heartbeat().status == other.rotate().status == 200


@pytest.mark.django_db(transaction=True)
def test_rotations_are_counted_exactly_across_processes(admin: Admin) -> None:
    phone = admin.enrol("phone-1")
    phones = [Phone(Client(), "phone-1", device_token=phone.device_token) for _ in range(14)]
    with ThreadPoolExecutor(4) as threads:
        statuses = sorted(threads.map(lambda one: releasing_connection(one.rotate).status, phones))
    assert statuses == [200] * 10 + [429] * 4


def test_requests_without_the_devices_token_use_up_none_of_its_rotations(phone: Phone) -> None:
    wrong = tokens.make(tokens.DEVICE_PREFIX, UUID(phone.device_id), bytes(32)).text
    assert {phone.send("/v1/token/rotate", None, wrong).status for _ in range(15)} == {401}
    assert phone.rotate().status == 200
