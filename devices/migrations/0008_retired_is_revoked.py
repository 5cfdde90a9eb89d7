"""Let the database refuse a retired device that is not revoked. The previous version can reinstate a retired device.

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
