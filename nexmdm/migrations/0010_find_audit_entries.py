"""Add indexes to find audit entries by action, command and device."""

from typing import Final

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models
from django.db.models.functions import Left

_INDEXES: Final = (
    models.Index(name="audit_action", fields=["action", "id"]),
    models.Index(name="audit_request", fields=["request_id"], condition=models.Q(request_id__isnull=False)),
    models.Index(name="audit_target", fields=["target"], condition=models.Q(request_id=None)),
    models.Index(Left("path", 51), name="audit_device_path", condition=models.Q(request_id=None)),
)


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("nexmdm", "0009_audit_summary")]

    operations = [AddIndexConcurrently("auditentry", index) for index in _INDEXES]
