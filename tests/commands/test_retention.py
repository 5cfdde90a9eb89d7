"""Old settled deliveries are deleted; open and recent ones stay."""

import secrets
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db.models.functions import Now
from django.utils import timezone

from commands import finishing, retention
from commands.models import Attempt, Command, Delivery, Report
from nexmdm.models import AuditEntry
from tests.support import tampering
from tests.support.actors import Admin, Phone
from tests.support.moments import let_pass


def settled_days_ago(request_id: str, days: int) -> None:
    """Let a command have ended this number of days ago."""
    Delivery.objects.filter(command__id=request_id).update(settled_at=Now() - timedelta(days=days))
    Command.objects.filter(id=request_id).update(finished_at=None, outcome=None)
    assert finishing.finish(100) == 1


def prune(*options: str) -> str:
    said = StringIO()
    call_command("prune", *options, stdout=said)
    return said.getvalue()


def test_a_delivery_is_deleted_with_its_attempts_and_reports_after_retention(admin: Admin, phone: Phone) -> None:
    request_id = admin.command("ping", to=phone).json["request_id"]
    Attempt.objects.create(delivery=Delivery.objects.get(), number=1)
    phone.report(request_id, "succeeded")
    settled_days_ago(request_id, 91)

    assert prune().startswith("Deleted 1 deliveries")

    assert not Command.objects.exists()
    assert (Delivery.objects.count(), Attempt.objects.count(), Report.objects.count()) == (0, 0, 0)


def with_reports(admin: Admin, phone: Phone, number: int, attempts: int = 0) -> Delivery:
    """Settle a delivery with this number of reports and attempts 91 days ago."""
    request_id = admin.command("ping", to=phone).json["request_id"]
    phone.report(request_id, "succeeded")
    settled_days_ago(request_id, 91)
    delivery = Delivery.objects.get(command_id=request_id)
    Report.objects.bulk_create(Report(delivery=delivery, status="running", duplicate=True) for _ in range(number - 1))
    Attempt.objects.bulk_create(
        Attempt(delivery=delivery, number=n, outcome="unknown", finished_at=Now()) for n in range(1, attempts + 1)
    )
    return delivery


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let retention delete ten rows at a time from a delivery with more than two."""
    monkeypatch.setattr(retention, "ROWS", 10)
    monkeypatch.setattr(retention, "FEW", 2)


def test_a_delivery_with_many_reports_is_deleted_in_steps_and_delays_no_other(
    admin: Admin, phone: Phone, small_steps: None
) -> None:
    large = with_reports(admin, phone, 35, attempts=13)
    for _ in range(3):
        with_reports(admin, phone, 1)
    kept = timedelta(days=90)

    assert retention.prune(kept, 100) == 3
    for left in ((25, 3), (15, 0), (5, 0)):
        assert retention.trim(kept, 100) == 1
        assert (Report.objects.count(), Attempt.objects.count()) == left
        with_reports(admin, phone, 1)
        assert retention.prune(kept, 100) == 1
        assert Delivery.objects.get() == large

    assert prune().startswith("Deleted 1 deliveries")
    assert not Command.objects.exists()


def test_one_step_deletes_rows_of_several_deliveries_and_no_more_than_its_limit(
    admin: Admin, phone: Phone, small_steps: None
) -> None:
    for _ in range(3):
        with_reports(admin, phone, 4)
    assert retention.trim(timedelta(days=90), 100) == 3
    assert Report.objects.count() == 2
    assert retention.trim(timedelta(days=90), 100) == 0


def test_a_step_deletes_no_more_bytes_of_outputs_than_its_limit_and_large_outputs_go_in_steps_too(
    admin: Admin, phone: Phone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BYTES", 20_000)
    for _ in range(3):
        delivery = with_reports(admin, phone, 1)
        Report.objects.filter(delivery=delivery).update(output={"a": secrets.token_urlsafe(10_000)})
    kept = timedelta(days=90)
    assert retention.prune(kept, 100) == 0
    left = []
    while retention.trim(kept, 100):
        left.append(Report.objects.count())
    assert left == [1, 0]
    assert retention.prune(kept, 100) == 3


def test_prune_deletes_deliveries_with_many_reports_too_and_only_old_ones(
    admin: Admin, phone: Phone, small_steps: None
) -> None:
    with_reports(admin, phone, 25, attempts=25)
    recent = with_reports(admin, phone, 25)
    settled_days_ago(str(recent.command_id), 1)

    assert prune().startswith("Deleted 1 deliveries")

    assert Delivery.objects.get() == recent
    assert (Report.objects.count(), Attempt.objects.count()) == (25, 0)


@pytest.mark.django_db(transaction=True)
def test_the_dispatcher_trims_and_prunes(admin: Admin, phone: Phone, small_steps: None) -> None:
    with_reports(admin, phone, 5)
    for _ in range(2):
        call_command("dispatch", once=True)
    assert (Delivery.objects.count(), Report.objects.count()) == (0, 0)


def test_open_and_recent_deliveries_stay(admin: Admin, phone: Phone) -> None:
    admin.command("ping", to=phone)
    recent = admin.command("ping", to=phone).json["request_id"]
    phone.report(recent, "succeeded")
    settled_days_ago(recent, 89)

    assert prune().startswith("Deleted 0 deliveries")

    assert Delivery.objects.count() == 2


def test_a_command_stays_with_all_its_deliveries_until_the_last_one_is_old(admin: Admin, phone: Phone) -> None:
    other = admin.enrol("phone-2")
    request_id = admin.command("ping", to=[phone, other]).json["request_id"]
    phone.report(request_id, "succeeded")
    Delivery.objects.filter(device__id=phone.device_id).update(settled_at=Now() - timedelta(days=91))
    prune()
    other.report(request_id, "failed")
    Delivery.objects.filter(device__id=other.device_id).update(settled_at=Now() - timedelta(days=89))
    prune()
    assert admin.get(f"/admin/commands/{request_id}").json["outcome"] == "partial"
    assert Delivery.objects.count() == 2

    let_pass(days=2)
    assert prune().startswith("Deleted 2 deliveries")
    assert not Command.objects.exists()


def test_a_command_keeps_its_outcome_while_its_deliveries_are_deleted(admin: Admin, phone: Phone) -> None:
    other = admin.enrol("phone-2")
    request_id = admin.command("ping", to=[phone, other]).json["request_id"]
    phone.report(request_id, "succeeded")
    other.report(request_id, "failed")
    settled_days_ago(request_id, 91)
    assert retention.prune(timedelta(days=90), 1) == 1
    (listed,) = admin.get("/admin/commands").json["items"]
    detail = admin.get(f"/admin/commands/{request_id}").json
    for one in (listed, detail):
        assert (one["state"], one["outcome"]) == ("completed", "partial")


def test_audit_entries_are_deleted_after_the_same_time(admin: Admin, phone: Phone) -> None:
    tampering.grow_old(AuditEntry.objects.get().id, at=timezone.now() - timedelta(days=8))
    admin.command("ping", to=phone)

    assert "1 audit entries older than 7 days" in prune("--days", "7")

    assert list(AuditEntry.objects.values_list("path", flat=True)) == ["/admin/command"]


@pytest.mark.parametrize("days", ["0", "-1", "1.5", "all"])
def test_entries_younger_than_a_day_cannot_be_pruned(admin: Admin, phone: Phone, days: str) -> None:
    with pytest.raises(CommandError, match="a whole number of days, at least 1"):
        prune("--days", days)
    assert AuditEntry.objects.count() == 1
