"""Named admins: each is a principal with its own key and secret, and shares nothing with another admin."""

import hmac
import json
from io import BytesIO
from itertools import permutations, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
import structlog
from asgiref.sync import async_to_sync
from django.views.debug import SafeExceptionReporterFilter
from pytest_django import Settings

from commands.models import Command
from nexmdm.http import refusals
from nexmdm.models import AuditEntry, StoredAnswer
from tests.support import processes
from tests.support.actors import Admin, Answer, Client, Phone

KEY: Final = "order-4711-attempt_A"
PING: Final[dict[str, Any]] = {"action": "ping", "target": {"all": True}}
NAMES: Final = ("admin", "ops1", "night")


def credential(text: str) -> str:
    return f"{text}-Zx90-and-more-than-32-characters"


@pytest.fixture
def admins(admin: Admin, client: Client, settings: Settings) -> dict[str, Admin]:
    """The unnamed admin and two named admins, each with its current key and secret."""
    settings.NAMED_ADMIN_KEYS = {name: [credential(f"{name}-key"), credential(f"{name}-old-key")] for name in NAMES[1:]}
    settings.NAMED_HMAC_SECRETS = {name: [credential(f"{name}-secret")] for name in NAMES[1:]}
    named = {name: Admin(client, credential(f"{name}-key"), credential(f"{name}-secret")) for name in NAMES[1:]}
    return {"admin": admin, **named}


def assert_refused(answer: Answer) -> None:
    assert (answer.status, answer.code) == (401, "invalid_signature")


def test_a_named_admin_may_call_all_of_the_admin_api_and_is_named_in_the_audit(
    admins: dict[str, Admin], phone: Phone
) -> None:
    for name, admin in admins.items():
        issued = admin.command(to=phone).json["request_id"]
        assert admin.post("/admin/command", {"action": "none", "target": {"all": True}}).status == 422
        assert Command.objects.get(pk=issued).issued_by == name
    written = admins["night"].get("/admin/audit").json["items"]
    mine = [(entry["principal"], entry["status"]) for entry in written if entry["path"] == "/admin/command"]
    assert mine[::-1] == [(name, status) for name in NAMES for status in (200, 422)]
    assert len(set(AuditEntry.objects.values_list("principal", "admin_key_id"))) == 3


@pytest.mark.parametrize(("one", "other"), list(permutations(NAMES, 2)))
def test_a_request_signed_for_one_admin_is_refused_under_the_key_of_another(
    admins: dict[str, Admin], client: Client, phone: Phone, one: str, other: str
) -> None:
    raw = json.dumps(PING).encode()
    signed = admins[one].headers("POST", "/admin/command", raw)
    assert_refused(client.request("POST", "/admin/command", raw, signed | {"X-Admin": admins[other].key}))
    assert_refused(Admin(client, admins[other].key, admins[one].secret).get("/admin/summary"))
    assert not Command.objects.exists()
    assert client.request("POST", "/admin/command", raw, signed).status == 200


def test_an_unknown_key_with_a_known_secret_gets_the_same_refusal_as_a_wrong_secret(
    admins: dict[str, Admin], client: Client
) -> None:
    refused = [
        Admin(client, key, secret).get("/admin/summary")
        for key, secret in (
            (credential("nobody"), admins["admin"].secret),
            (credential("nobody"), admins["ops1"].secret),
            (admins["ops1"].key, credential("nobody")),
        )
    ]
    for answer in refused:
        assert_refused(answer)
    assert len({answer.body for answer in refused}) == 1


@pytest.mark.parametrize("key", ["the admin's", "a named one's", "nobody's"])
def test_the_key_is_compared_with_all_keys_and_the_signature_with_one_admins_secrets(
    admins: dict[str, Admin], client: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr("nexmdm.auth.signature_verification.hmac", SimpleNamespace(compare_digest=compare))
    keys = {"the admin's": admins["admin"].key, "a named one's": admins["ops1"].key, "nobody's": credential("nobody")}
    assert_refused(Admin(client, keys[key], credential("wrong")).get("/admin/summary"))
    *with_keys, with_signature = compared
    every = [*settings.ADMIN_KEYS, *(one for live in settings.NAMED_ADMIN_KEYS.values() for one in live)]
    assert sorted(with_keys) == sorted((keys[key].encode(), one.encode()) for one in every)
    assert with_signature[1].startswith(b"v1=")


def test_a_named_admin_rotates_its_key_and_its_secret_and_stays_one_principal(
    admins: dict[str, Admin], client: Client, phone: Phone, settings: Settings
) -> None:
    keys, secrets = ("new-key", "old-key"), ("new-secret", "old-secret")
    settings.NAMED_ADMIN_KEYS = settings.NAMED_ADMIN_KEYS | {"ops1": list(keys)}
    settings.NAMED_HMAC_SECRETS = settings.NAMED_HMAC_SECRETS | {"ops1": list(secrets)}
    for key, secret in product(keys, secrets):
        assert Admin(client, key, secret).command(to=phone).status == 200
    assert set(Command.objects.values_list("issued_by", flat=True)) == {"ops1"}
    assert_refused(Admin(client, admins["night"].key, "old-secret").command(to=phone))
    assert_refused(Admin(client, "old-key", admins["night"].secret).command(to=phone))
    assert_refused(admins["ops1"].command(to=phone))

    settings.NAMED_ADMIN_KEYS = settings.NAMED_ADMIN_KEYS | {"ops1": ["new-key"]}
    settings.NAMED_HMAC_SECRETS = settings.NAMED_HMAC_SECRETS | {"ops1": ["new-secret"]}
    assert_refused(Admin(client, "old-key", "new-secret").command(to=phone))
    assert_refused(Admin(client, "new-key", "old-secret").command(to=phone))
    assert Admin(client, "new-key", "new-secret").command(to=phone).status == 200
    assert admins["night"].command(to=phone).status == 200


def test_the_same_idempotency_key_of_two_admins_is_two_requests(admins: dict[str, Admin], phone: Phone) -> None:
    first = {name: admin.post("/admin/command", PING, idempotency_key=KEY) for name, admin in admins.items()}
    again = {name: admin.post("/admin/command", PING, idempotency_key=KEY) for name, admin in admins.items()}
    assert len({answer.json["request_id"] for answer in first.values()}) == 3
    assert [answer.headers.get("idempotent-replayed") for answer in first.values()] == [None] * 3
    assert [answer.headers.get("idempotent-replayed") for answer in again.values()] == ["true"] * 3
    assert [answer.body for answer in again.values()] == [answer.body for answer in first.values()]
    assert set(StoredAnswer.objects.filter(key=KEY).values_list("principal", flat=True)) == set(NAMES)


def test_an_idempotency_key_is_free_for_other_requests_of_another_admin(admins: dict[str, Admin], phone: Phone) -> None:
    assert admins["ops1"].post("/admin/command", PING, idempotency_key=KEY).status == 200
    other = PING | {"note": "another request"}
    assert admins["night"].post("/admin/command", other, idempotency_key=KEY).status == 200
    assert admins["ops1"].post("/admin/command", other, idempotency_key=KEY).code == "idempotency_key_reused"


def test_each_admin_has_rate_limits_of_its_own(admins: dict[str, Admin], phone: Phone, settings: Settings) -> None:
    settings.ADMIN_RATE_LIMIT = settings.ADMIN_READ_RATE_LIMIT = "2/h"
    for name in ("ops1", "night"):
        writes = [admins[name].command(to=phone) for _ in range(3)]
        reads = [admins[name].get("/admin/summary") for _ in range(3)]
        assert [answer.code for answer in writes] == [answer.code for answer in reads] == [None, None, "rate_limited"]
    assert Command.objects.count() == 4


def test_an_admin_with_two_keys_has_one_rate_limit(
    admins: dict[str, Admin], client: Client, settings: Settings
) -> None:
    settings.ADMIN_READ_RATE_LIMIT = "1/h"
    callers = [Admin(client, key, admins["ops1"].secret) for key in settings.NAMED_ADMIN_KEYS["ops1"]]
    assert [caller.get("/admin/summary").code for caller in callers] == [None, "rate_limited"]


def test_refusals_of_two_admins_behind_one_address_are_logged_under_their_names(
    admins: dict[str, Admin], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = BytesIO()
    monkeypatch.setattr("nexmdm.http.refusals.log", structlog.wrap_logger(structlog.BytesLogger(written)))

    async def refuse() -> None:
        for name in ("ops1", "ops1", "night", "ops1"):
            headers = admins[name].headers("GET", "/admin/summary?surprise=1", b"")
            await admins[name].client.arequest("GET", "/admin/summary?surprise=1", None, headers)
        await refusals.drain()

    async_to_sync(refuse)()
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    assert [(line["principal"], line["count"]) for line in lines] == [("ops1", 1), ("night", 1), ("ops1", 2)]


def test_the_keys_and_secrets_of_named_admins_are_masked_in_shown_settings(admins: dict[str, Admin]) -> None:
    mask = SafeExceptionReporterFilter()
    shown = mask.get_safe_settings()
    assert shown["NAMED_ADMIN_KEYS"] == shown["NAMED_HMAC_SECRETS"] == mask.cleansed_substitute


def test_the_command_line_client_signs_as_the_admin_that_is_named(admins: dict[str, Admin], client: Client) -> None:
    ops = {"ADMIN_KEY_OPS1": admins["ops1"].key, "HMAC_SECRET_OPS1": admins["ops1"].secret}
    sign = ("manage.py", "fleet", "sign", "GET", "/admin/summary", "--json", "--as")
    elsewhere = processes.run(*sign, "OPS1", "--url", "https://mdm.example.com", **ops)
    assert elsewhere.returncode == 0, elsewhere.stderr
    signed = processes.run(*sign, "ops1", **ops)
    assert client.request("GET", "/admin/summary", None, json.loads(signed.stdout)).status == 200


def test_the_command_line_client_refuses_a_name_without_a_key(tmp_path: Path) -> None:
    done = processes.run("manage.py", "fleet", "summary", "--as", "nobody", NEXMDM_DATA_DIR=str(tmp_path / "data"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "No secrets are known for the admin 'nobody'. Set ADMIN_KEY_NOBODY and HMAC_SECRET_NOBODY" in done.stderr
