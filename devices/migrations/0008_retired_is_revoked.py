"""Add a constraint: a retired device must be revoked. It stops the previous version from reinstating retired devices.

The constraint is not validated here. The next migration validates it, without a lock that delays other transactions.
"""

from django.contrib.postgres.operations import AddConstraintNotValid
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("devices", "0007_push_failures")]

    operations = [
        AddConstraintNotValid(
            model_name="device",
            constraint=models.CheckConstraint(
                name="device_retired_is_revoked",
                condition=models.Q(("retired_at", None), ("revoked_at__isnull", False), _connector="OR"),
            ),
        ),
    ]
