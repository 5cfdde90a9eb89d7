"""Store that a device had sent no heartbeat before its command expired, or that the device was retired.

The column has no CHECK; migration 0003 explains why. Deliveries that ended before this migration have NULL.
"""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("commands", "0006_find_commands_by_end")]

    operations = [
        migrations.AddField(
            "delivery",
            "device_was",
            models.CharField(
                max_length=16,
                choices=[("never_seen", "Never Seen"), ("retired", "Retired")],
                null=True,
                blank=True,
            ),
        ),
    ]
