"""Make the database refuse a retired device that is not revoked: the previous version could reinstate a retired device.

The next migration checks earlier rows, without a lock that delays other transactions.
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
