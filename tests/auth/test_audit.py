"""The audit: each signed write has an entry, no role can change it afterwards, and a change by the owner is found."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from hashlib import sha256
from io import StringIO
from typing import Any, Final
from uuid import uuid4

import pytest
import structlog
from django.core.management import CommandError, call_command
from django.db import OperationalError, ProgrammingError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django import Settings

from commands.push.dispatcher import Dispatcher
from devices.models import Device
from nexmdm.api.application import api
from nexmdm.audit import chain, entries
from nexmdm.auth.admin_router import AdminRouter
from nexmdm.common import database
from nexmdm.management.commands import dispatch
from nexmdm.models import AuditEntry, AuditMark
from tests.support import tampering
from tests.support.actors import Admin, Client, Phone
from tests.support.moments import in_parallel

OLD_KEY: Final = "the-admin-key-that-was-in-use-until-yesterday"

commits = pytest.mark.django_db(transaction=True)
"""The chain is read in its own transaction, which sees only committed entries."""


def verify(*options: str) -> str:
    """Return what `manage.py verify_audit` prints."""
    printed = StringIO()
    call_command("verify_audit", *options, stdout=printed)
    return printed.getvalue()


def broken(*options: str) -> str:
    """Return the error that `manage.py verify_audit` prints."""
    with pytest.raises(CommandError) as complaint:
        verify(*options)
    assert complaint.value.returncode == 1
    return str(complaint.value)


def newest() -> str:
    """Return the position of the newest entry, as the command prints it."""
    return verify().partition("The newest is ")[2].split()[0]


@pytest.fixture
def written(admin: Admin) -> list[int]:
    """Five entries."""
    for _ in range(5):
        admin.enrollment_token()
    return list(AuditEntry.objects.order_by("id").values_list("id", flat=True))


def key_id(key: str) -> str:
    return sha256(b"id:" + key.encode()).hexdigest()[:8]


def test_an_entry_contains_the_ids_of_the_admin_key_and_the_idempotency_key(
    admin: Admin, client: Client, settings: Settings
) -> None:
    settings.ADMIN_KEYS = [admin.key, OLD_KEY]
    for key in settings.ADMIN_KEYS:
        caller = Admin(client, key, admin.secret)
        caller.post("/admin/enrollment-tokens", {}, idempotency_key=f"sent-with-{key_id(key)}")
    found = AuditEntry.objects.order_by("id").values_list("principal", "admin_key_id", "idempotency_key")
    ids = [key_id(key) for key in settings.ADMIN_KEYS]
    assert list(found) == [("admin", one, f"sent-with-{one}") for one in ids]
    assert ids[0] != ids[1]


def test_an_invalid_idempotency_key_is_not_stored(admin: Admin) -> None:
    admin.post("/admin/enrollment-tokens", {}, idempotency_key="x" * 5000)
    entry = AuditEntry.objects.get()
    assert (entry.code, entry.idempotency_key) == ("idempotency_key_required", "")


@pytest.mark.parametrize(
    ("method", "target", "body", "kind", "status"),
    [
        ("POST", "/admin/nothing", b"{}", "application/json", 404),
        ("POST", "/admin/devices/x/revoke", b"", None, 404),
        ("DELETE", "/admin/command", b"", None, 405),
        ("POST", "/admin/command", b" " * 20_000_000, "application/json", 413),
        ("POST", "/admin/command", b"{}", "text/plain", 415),
    ],
)
def test_a_request_refused_before_its_signature_is_checked_has_no_entry(
    admin: Admin, method: str, target: str, body: bytes, kind: str | None, status: int
) -> None:
    headers = admin.headers(method, target, body)
    if kind is not None:
        headers["Content-Type"] = kind
    assert admin.client.request(method, target, body or None, headers).status == status
    assert not AuditEntry.objects.exists()


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(RuntimeError("a fault of ours"), 500, "internal"), (database.DeadlockRetriesExhausted(), 503, "overloaded")],
)
def test_a_write_that_failed_is_audited_too(
    admin: Admin, phone: Phone, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, code: str
) -> None:
    fail_to_revoke(monkeypatch, error)
    assert admin.post(f"/admin/devices/{phone.device_id}/revoke").status == status
    entry = AuditEntry.objects.latest("id")
    assert (entry.path, entry.status, entry.code) == (f"/admin/devices/{phone.device_id}/revoke", status, code)


def fail_to_revoke(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr("devices.enrollment.revoke", fail)


def unwritable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OperationalError

    monkeypatch.setattr(entries, "values", refuse)


def test_a_write_whose_entry_cannot_be_written_is_not_done(
    admin: Admin, phone: Phone, monkeypatch: pytest.MonkeyPatch
) -> None:
    unwritable(monkeypatch)
    assert admin.post(f"/admin/devices/{phone.device_id}/revoke").code == "database_unavailable"
    assert Device.objects.get().revoked_at is None


def test_a_refusal_that_cannot_be_recorded_is_not_sent(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    unwritable(monkeypatch)
    assert admin.post(f"/admin/devices/{uuid4()}/revoke").code == "database_unavailable"


def test_a_failure_that_cannot_be_recorded_is_logged(
    admin: Admin, phone: Phone, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_to_revoke(monkeypatch, RuntimeError("a fault of ours"))
    unwritable(monkeypatch)
    with structlog.testing.capture_logs() as lines:
        assert admin.post(f"/admin/devices/{phone.device_id}/revoke").code == "internal"
    (line,) = [line for line in lines if line["event"] == "audit.unwritten"]
    assert (line["principal"], line["path"]) == ("admin", f"/admin/devices/{phone.device_id}/revoke")


def test_a_write_waits_for_the_audit_only_after_all_its_other_work(admin: Admin, phone: Phone) -> None:
    with CaptureQueriesContext(connection) as queries:
        admin.command(to=phone)
    printed = [query["sql"] for query in queries]
    *_, constraints, entry = printed[-2].split(";")
    assert constraints == "SET CONSTRAINTS ALL IMMEDIATE"
    assert entry.lstrip().startswith("INSERT INTO nexmdm_auditentry")
    assert printed[-1].startswith("RELEASE SAVEPOINT"), "a test is one transaction, so that a commit shows as this"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE nexmdm_auditentry SET principal = 'somebody else'",
        "UPDATE nexmdm_auditentry SET hash = hash",
        "DELETE FROM nexmdm_auditentry",
        "DELETE FROM nexmdm_auditentry WHERE id = (SELECT max(id) FROM nexmdm_auditentry)",
        "TRUNCATE nexmdm_auditentry",
    ],
)
def test_the_database_refuses_to_change_or_delete_an_entry(written: list[int], statement: str) -> None:
    database.execute("ALTER TABLE nexmdm_auditentry ENABLE TRIGGER audit_not_truncated")
    before = list(AuditEntry.objects.values())
    refused = f"The audit is append-only: {statement.partition(' ')[0]} is refused"
    with pytest.raises(ProgrammingError, match=refused), transaction.atomic():
        database.execute(statement)
    assert list(AuditEntry.objects.values()) == before


def test_every_inserted_entry_is_numbered_dated_and_chained_by_the_database(written: list[int]) -> None:
    last = AuditEntry.objects.get(id=written[-1])
    began_at = timezone.now() - timedelta(minutes=1)
    # Code from before the chain does the same, and does not know the other columns.
    database.execute(
        """
        INSERT INTO nexmdm_auditentry
            (id, at, principal, address, method, path, body_sha256, status, code, request_id, correlation_id)
        VALUES (1, '2020-01-01', 'admin', NULL, 'POST', '/admin/command', '', 200, '', NULL, 'by-hand')
        """
    )
    entry = AuditEntry.objects.get(correlation_id="by-hand")
    assert (entry.id, entry.previous) == (last.id + 1, last.hash)
    assert entry.at > began_at


@pytest.mark.parametrize("address", [None, "192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", "::"])
@pytest.mark.parametrize("text", ["", "Café ✓ 📱", '"\\/\b\f\n\r\t', "\x01\x1f\x7f\x80\u2028\ufeff", "', NULL, '"])
def test_the_database_and_python_hash_the_same_content(db: None, address: str | None, text: str) -> None:
    entry = AuditEntry.objects.create(
        principal=text, address=address, method="POST", path=text, body_sha256="", status=200, request_id=uuid4()
    )
    entry.refresh_from_db()
    assert entry.hash == chain.digest(entry)


@commits
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("address", "192.0.2.1/24"),
        ("address", "2001:DB8::1/64"),
        ("address", "::192.0.2.1/0"),
        ("address", "::ffff:192.0.2.1/96"),
        ("at", "infinity"),
        ("at", "0044-03-15 BC"),
        ("id", "-9223372036854775808"),
        ("status", "0"),
        ("status", "32767"),
        ("request_id", "{A0EEBC999C0B4EF8BB6D6BB9BD380A11}"),
        ("principal", "e\u0301\u212b\uffff\U0010ffff"),
        ("admin_key_id", "x       "),
        ("code", " \t"),
        ("path", "x" * 100_000),
        ("hash", "f" * 64),
    ],
)
def test_every_entry_that_can_be_inserted_is_verified(written: list[int], column: str, value: str) -> None:
    fields = {"principal": "", "method": "", "path": "", "body_sha256": "", "status": "0", "code": ""}
    fields |= {"correlation_id": "by-hand", column: value}
    marks = ", ".join(["%s"] * len(fields))
    with transaction.atomic():
        database.execute("SET LOCAL timezone = 'Asia/Kathmandu'")
        database.execute("SET LOCAL datestyle = 'SQL, DMY'")
        database.execute("SET LOCAL standard_conforming_strings = off")
        database.execute(f"INSERT INTO nexmdm_auditentry ({', '.join(fields)}) VALUES ({marks})", list(fields.values()))  # noqa: S608
    assert verify().startswith("Verified 6 entries")


@commits
def test_the_audit_of_a_new_installation_is_valid(db: None) -> None:
    assert verify().startswith("Verified 0 entries")


@commits
def test_the_command_prints_how_many_entries_it_verified_and_the_witness(written: list[int]) -> None:
    last = AuditEntry.objects.latest("id")
    assert verify().splitlines()[:2] == ["Verified 5 entries, from 1 on.", f"The newest is {last.id}:{last.hash}"]


@commits
def test_simultaneous_writes_make_one_chain(admin: Admin) -> None:
    refused = [lambda: admin.post(f"/admin/devices/{uuid4()}/revoke")] * 3
    done = [lambda: admin.post("/admin/enrollment-tokens", {})] * 3
    answers = in_parallel(refused + done, all_wait_for="nexmdm_auditmark")
    assert [answer.status for answer in answers] == [404] * 3 + [200] * 3
    assert verify().startswith("Verified 6 entries")
    assert list(AuditEntry.objects.order_by("id").values_list("id", flat=True)) == list(range(1, 7))


@commits
def test_writes_to_the_same_device_at_the_same_time_do_not_deadlock(admin: Admin, phone: Phone) -> None:
    device = f"/admin/devices/{phone.device_id}"
    calls: list[Callable[[], Any]] = [
        lambda: admin.post(f"{device}/revoke"),
        lambda: admin.command(to={"all": True}),
        lambda: admin.call("PATCH", device, {"alias": "lobby"}),
        lambda: admin.post("/admin/tags/lobby", {"add": [phone.device_id]}),
    ]
    answers = in_parallel(calls, all_wait_for="nexmdm_auditmark")
    # The command and the revocation may run in any order.
    assert {answer.code for answer in answers} <= {None, "empty_audience"}
    assert verify().startswith("Verified 5 entries")


@commits
def test_work_that_is_rolled_back_leaves_no_gap(admin: Admin, written: list[int]) -> None:
    with transaction.atomic():
        admin.enrollment_token()
        transaction.set_rollback(True)
    admin.enrollment_token()
    assert AuditEntry.objects.latest("id").id == written[-1] + 1
    assert verify().startswith("Verified 6 entries")


CHANGES: Final[dict[str, Any]] = {
    "principal": "somebody", "admin_key_id": "00000000", "idempotency_key": "another-one-0000", "address": "192.0.2.7",
    "method": "PATCH", "path": "/admin/tags/lobby", "body_sha256": "0" * 64, "status": 403, "code": "forbidden",
    "request_id": uuid4(), "correlation_id": "another", "previous": "1" * 64, "hash": "2" * 64,
    "action": "ping", "target": "tags: lobby", "device_count": 4711, "dry_run": True,
}  # fmt: skip


@commits
def test_a_change_of_any_field_is_found(written: list[int]) -> None:
    third = AuditEntry.objects.get(id=written[2])
    changes = CHANGES | {"at": third.at + timedelta(microseconds=1)}
    assert set(changes) == {field.name for field in AuditEntry._meta.fields} - {"id"}
    for name, value in changes.items():
        tampering.change(third.id, **{name: value})
        assert broken().startswith(f"The audit is broken. Entry {third.id} was changed"), name
        tampering.change(third.id, **{name: getattr(third, name)})
    assert verify().startswith("Verified 5 entries")


@commits
def test_a_changed_entry_with_a_new_hash_of_itself_is_found(written: list[int]) -> None:
    tampering.change(written[2], principal="somebody")
    tampering.seal(written[2])
    assert f"Entry {written[2]} was rewritten" in broken()


@commits
def test_the_newest_entry_with_a_new_hash_of_itself_is_found(written: list[int]) -> None:
    tampering.change(written[-1], principal="somebody")
    tampering.seal(written[-1])
    assert f"Entry {written[-1]} was rewritten" in broken()


@commits
@pytest.mark.parametrize(
    ("gone", "what"),
    [
        ([2], "Entry 3 was deleted"),
        ([1, 2, 3], "Entries 2 to 4 were deleted"),
        ([0], "Entry 1 was deleted"),
        ([4], "Entry 5 was deleted"),
        ([0, 1, 2, 3, 4], "Entries 1 to 5 were deleted"),
    ],
)
def test_a_deleted_entry_is_found(written: list[int], gone: list[int], what: str) -> None:
    tampering.delete(*(written[number] for number in gone))
    assert what in broken()


@commits
def test_an_inserted_entry_is_found(written: list[int]) -> None:
    # Before the first entry, between entries (possible only after a number is removed), and after the last entry.
    tampering.forge(-1, previous=chain.BEGINNING.hash)
    assert "Entry -1 was inserted" in broken()
    tampering.delete(-1)

    tampering.forge(6, previous=AuditEntry.objects.get(id=5).hash)
    assert "Entry 6 was inserted" in broken()
    tampering.delete(6)

    assert verify().startswith("Verified 5 entries")


@commits
def test_an_entry_that_fills_a_gap_is_found(admin: Admin, written: list[int]) -> None:
    # Numbers from before the chain may have gaps.
    with tampering.unguarded():
        AuditEntry.objects.filter(id=5).update(id=8)
    tampering.rewrite()
    admin.enrollment_token()
    assert verify().startswith("Verified 6 entries, from 1 on.")

    forged = tampering.forge(5, previous=AuditEntry.objects.get(id=4).hash)
    tampering.forge(6, previous=forged.hash)
    assert "Entries 5 to 6 were inserted: entry 8 was written directly after entry 4." in broken()


@commits
def test_a_completely_rewritten_audit_is_found_by_a_witness(written: list[int]) -> None:
    assert_found_when_rewritten(written, newest())


def assert_found_when_rewritten(written: list[int], witness: str) -> None:
    """Assert that this witness finds no fault until the audit is rewritten."""
    assert verify("--witness", witness) == verify()

    tampering.change(written[2], principal="somebody")
    tampering.rewrite()
    assert verify().startswith("Verified 5 entries")
    assert "Entry 5 was rewritten, or an earlier entry was" in broken("--witness", witness)


@commits
def test_an_end_that_was_cut_off_with_its_mark_is_found_by_a_witness(written: list[int]) -> None:
    witness = newest()
    tampering.delete(written[-1], written[-2])
    tampering.rewrite()
    assert verify().startswith("Verified 3 entries")
    assert "Entries 4 to 5 were deleted" in broken("--witness", witness)


def logged_witnesses() -> list[str]:
    """Return the witnesses that a dispatcher logs."""
    with structlog.testing.capture_logs() as lines:
        call_command("dispatch", once=True)
    return [line["witness"] for line in lines if line["event"] == "audit.witness"]


@commits
def test_a_witness_in_the_log_of_a_dispatcher_finds_a_rewritten_audit(written: list[int]) -> None:
    (witness,) = logged_witnesses()
    assert witness == newest()
    assert_found_when_rewritten(written, witness)


@commits
def test_a_dispatcher_logs_no_witness_of_an_audit_without_entries(db: None) -> None:
    assert logged_witnesses() == []


def test_a_dispatcher_logs_a_witness_every_hour() -> None:
    tasks = {task.name: task.every_seconds for task in dispatch._periodic_tasks(Dispatcher(None, per_second=1))}
    assert tasks["witness of the audit"] == 3600


@commits
def test_a_witness_stays_valid_while_the_chain_grows(admin: Admin, written: list[int]) -> None:
    witness = newest()
    admin.enrollment_token()
    assert verify("--witness", witness).startswith("Verified 6 entries")


@pytest.mark.parametrize("text", ["", "5", "5:abc", "five:" + "0" * 64, "5:" + "g" * 64])
def test_a_malformed_witness_is_refused(db: None, text: str) -> None:
    with pytest.raises(CommandError, match="an entry's number, a colon, and the 64 digits of its hash"):
        verify("--witness", text)


def grow_old(*entry_ids: int) -> None:
    tampering.grow_old(*entry_ids, at=timezone.now() - timedelta(days=91))


def prune() -> str:
    printed = StringIO()
    call_command("prune", stdout=printed)
    return printed.getvalue()


@commits
def test_after_retention_the_chain_begins_with_the_oldest_entry_that_stays(admin: Admin, written: list[int]) -> None:
    grow_old(*written[:3])
    witness = newest()
    assert "3 audit entries" in prune()
    assert verify("--witness", witness).startswith("Verified 2 entries, from 4 on.")

    tampering.delete(4)
    assert "Entry 4 was deleted" in broken()


@commits
def test_retention_deletes_no_old_entry_after_a_young_one(written: list[int]) -> None:
    grow_old(written[0], written[2])
    assert "1 audit entries" in prune()
    assert list(AuditEntry.objects.order_by("id").values_list("id", flat=True)) == written[1:]
    assert verify().startswith("Verified 4 entries")


@commits
def test_the_chain_continues_after_retention_has_deleted_everything(admin: Admin, written: list[int]) -> None:
    grow_old(*written)
    witness = newest()
    assert [entries.prune(timedelta(days=90), 3) for _ in range(3)] == [3, 2, 0]
    assert verify("--witness", witness).startswith("Verified 0 entries")

    admin.enrollment_token()
    assert verify("--witness", witness).startswith("Verified 1 entries, from 6 on.")


@commits
def test_a_witness_that_retention_has_deleted_proves_nothing_and_the_command_reports_this(
    admin: Admin, written: list[int]
) -> None:
    grow_old(*written[:3])
    third = AuditEntry.objects.get(id=written[2])
    prune()
    # The mark stores the last deleted entry.
    assert verify("--witness", f"{third.id}:{third.hash}").startswith("Verified 2 entries")
    assert "Retention has deleted entry 2. Use a newer place" in broken("--witness", f"2:{third.previous}")


@commits
def test_the_mark_of_retention_does_not_excuse_a_deleted_entry(written: list[int]) -> None:
    grow_old(*written[:2])
    prune()
    with pytest.raises(ProgrammingError, match="DELETE is refused"), transaction.atomic():
        AuditEntry.objects.filter(id=written[2]).delete()
    assert AuditMark.objects.get(name=AuditMark.PRUNED).entry_id == 2


@commits
def test_entries_deleted_too_early_are_found(written: list[int]) -> None:
    tampering.grow_old(*written[:2], at=timezone.now() - timedelta(days=30))
    call_command("prune", "--days", "7", stdout=StringIO())
    assert "Entries up to 2 were deleted. The last deleted entry is from 2" in broken()
    assert "give the lower number as --days" in broken("--days", "31")
    assert verify("--days", "29").startswith("Verified 3 entries, from 3 on.")


def an_entry() -> AuditEntry:
    return AuditEntry(principal="admin", method="POST", path="/admin/command", body_sha256="", status=200)


@pytest.fixture
def stranger(written: list[int]) -> Iterator[None]:
    """Work as a role that has all rights on rows, but owns no table. The first two entries are old."""
    grow_old(*written[:2])
    with transaction.atomic():
        for trigger in ("entry ENABLE TRIGGER audit_not_truncated", "mark ENABLE TRIGGER audit_mark_not_truncated"):
            database.execute(f"ALTER TABLE nexmdm_audit{trigger}")
        database.execute("CREATE ROLE stranger")
        database.execute("GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public TO stranger")
        database.execute("SET LOCAL ROLE stranger")
        yield
        transaction.set_rollback(True)


MOVE: Final = """
    SET CONSTRAINTS ALL DEFERRED;
    INSERT INTO nexmdm_auditmark (name, entry_id, hash)
    SELECT 'pruned', id, hash FROM nexmdm_auditentry WHERE id = {};
"""
COMMIT: Final = "SET CONSTRAINTS ALL IMMEDIATE"
OWN_MARK: Final = """
    CREATE TEMPORARY TABLE nexmdm_auditmark (name text, entry_id bigint, hash text);
    INSERT INTO pg_temp.nexmdm_auditmark VALUES ('pruned', 1000, ''), ('newest', 1000, repeat('f', 64));
"""


@transaction.atomic
def execute_all(statements: tuple[str, ...]) -> None:
    for statement in statements:
        database.execute(statement)


@pytest.mark.parametrize(
    ("statements", "refused"),
    [
        ((MOVE.format(3),), "must match the audit entries: INSERT"),
        ((MOVE.format(2), "UPDATE nexmdm_auditmark SET entry_id = 4 WHERE name = 'pruned'"), "entries: UPDATE"),
        ((MOVE.format(2), COMMIT), "at entry 2, but earlier entries still exist"),
        (
            (MOVE.format(2), "DELETE FROM nexmdm_auditentry WHERE id = 2", COMMIT),
            "at entry 2, but earlier entries still exist",
        ),
        ((MOVE.format(2), "DELETE FROM nexmdm_auditentry"), "append-only: DELETE"),
        ((OWN_MARK, "DELETE FROM nexmdm_auditentry WHERE id = 1"), "append-only: DELETE"),
        (("DELETE FROM nexmdm_auditentry WHERE id = 1",), "append-only: DELETE"),
        (
            ("INSERT INTO nexmdm_auditmark VALUES ('pruned', 2, repeat('f', 64))",),
            "must match the audit entries: INSERT",
        ),
        (("INSERT INTO nexmdm_auditmark VALUES ('other', 0, '')",), "must match the audit entries: INSERT"),
        (("UPDATE nexmdm_auditmark SET entry_id = 4",), "must match the audit entries: UPDATE"),
        (("UPDATE nexmdm_auditmark SET entry_id = 6",), "must match the audit entries: UPDATE"),
        (("UPDATE nexmdm_auditmark SET hash = repeat('f', 64)",), "must match the audit entries: UPDATE"),
        (("UPDATE nexmdm_auditmark SET name = 'pruned'",), "must match the audit entries: UPDATE"),
        (("DELETE FROM nexmdm_auditmark",), "must match the audit entries: DELETE"),
        (("TRUNCATE nexmdm_auditmark",), "append-only: TRUNCATE"),
    ],
)
def test_a_role_that_owns_nothing_cannot_delete_young_entries_or_forge_the_marks(
    stranger: None, statements: tuple[str, ...], refused: str
) -> None:
    before = list(AuditEntry.objects.values()), list(AuditMark.objects.values())
    with pytest.raises(ProgrammingError, match=refused):
        execute_all(statements)
    assert (list(AuditEntry.objects.values()), list(AuditMark.objects.values())) == before


def test_a_role_that_owns_nothing_cannot_use_its_own_table_of_marks(stranger: None) -> None:
    last = AuditEntry.objects.latest("id")
    database.execute(OWN_MARK)
    entry = an_entry()
    entry.save()
    entry.refresh_from_db()
    assert (entry.id, entry.previous) == (last.id + 1, last.hash)


def test_a_role_that_owns_nothing_is_enough_to_write_entries_and_for_retention(stranger: None, admin: Admin) -> None:
    admin.enrollment_token()
    assert AuditEntry.objects.latest("id").id == 6
    assert [entries.prune(timedelta(days=90), 100) for _ in range(2)] == [2, 0]
    database.execute("SET CONSTRAINTS ALL IMMEDIATE")
    mark = AuditMark.objects.get(name=AuditMark.PRUNED)
    assert (mark.entry_id, mark.hash) == (2, AuditEntry.objects.earliest("id").previous)
    assert mark.at is not None
    assert mark.at < timezone.now() - timedelta(days=90)


def test_several_entries_of_one_statement_make_one_chain(db: None) -> None:
    AuditEntry.objects.bulk_create(an_entry() for _ in range(3))
    place = chain.BEGINNING
    for found in AuditEntry.objects.order_by("id"):
        assert (found.previous, found.hash) == (place.hash, chain.digest(found))
        place = chain.Place(found.id, found.hash)
    assert AuditMark.objects.values_list("entry_id", "hash").get() == (3, place.hash)


def test_every_router_of_the_admin_api_audits() -> None:
    """A router of another class cannot be mounted under /admin."""
    routers = [router for prefix, router in api._routers if prefix == "/admin"]
    assert len(routers) >= 3
    assert [router for router in routers if not isinstance(getattr(router, "template", router), AdminRouter)] == []
