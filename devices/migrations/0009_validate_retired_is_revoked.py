"""Validate the constraint on retired devices for the rows that are older than the constraint."""

from django.contrib.postgres.operations import ValidateConstraint
from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("devices", "0008_retired_is_revoked")]

    operations = [ValidateConstraint(model_name="device", name="device_retired_is_revoked")]
