"""What settled long ago leaves; what is open or recent stays."""

from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db.models.functions import Now
from django.utils import timezone

from commands.models import Attempt, Command, Delivery, Report
from nexmdm.models import AuditEntry
from tests import tampering
from tests.actors import Admin, Phone


def settled_days_ago(request_id: str, days: int) -> None:
    Delivery.objects.filter(command__id=request_id).update(settled_at=Now() - timedelta(days=days))


def prune(*options: str) -> str:
    said = StringIO()
    call_command("prune", *options, stdout=said)
    return said.getvalue()


def test_a_delivery_leaves_with_its_attempts_and_reports_when_its_time_is_over(admin: Admin, phone: Phone) -> None:
    request_id = admin.command("ping", to=phone).json["request_id"]
    Attempt.objects.create(delivery=Delivery.objects.get(), number=1)
    phone.report(request_id, "succeeded")
    settled_days_ago(request_id, 91)

    assert prune().startswith("Deleted 1 deliveries")

    assert not Command.objects.exists()
    assert (Delivery.objects.count(), Attempt.objects.count(), Report.objects.count()) == (0, 0, 0)


def test_what_is_open_or_recent_stays(admin: Admin, phone: Phone) -> None:
    admin.command("ping", to=phone)
    recent = admin.command("ping", to=phone).json["request_id"]
    phone.report(recent, "succeeded")
    settled_days_ago(recent, 89)

    assert prune().startswith("Deleted 0 deliveries")

    assert Delivery.objects.count() == 2


def test_a_command_stays_as_long_as_one_of_its_deliveries(admin: Admin, phone: Phone) -> None:
    other = admin.enrol("phone-2")
    request_id = admin.command("ping", to=[phone, other]).json["request_id"]
    phone.report(request_id, "succeeded")
    Delivery.objects.filter(device__id=phone.device_id).update(settled_at=Now() - timedelta(days=91))

    prune()

    assert str(Delivery.objects.get().device_id) == other.device_id
    assert admin.get(f"/admin/commands/{request_id}").status == 200


def test_the_audit_leaves_after_the_same_time(admin: Admin, phone: Phone) -> None:
    tampering.grow_old(AuditEntry.objects.get().id, at=timezone.now() - timedelta(days=8))
    admin.command("ping", to=phone)

    assert "1 audit entries older than 7 days" in prune("--days", "7")

    assert list(AuditEntry.objects.values_list("path", flat=True)) == ["/admin/command"]


@pytest.mark.parametrize("days", ["0", "-1", "1.5", "all"])
def test_what_is_younger_than_a_day_cannot_be_pruned(admin: Admin, phone: Phone, days: str) -> None:
    with pytest.raises(CommandError, match="a whole number of days, at least 1"):
        prune("--days", days)
    assert AuditEntry.objects.count() == 1
