"""Store that a device had no heartbeat before its command expired, or was retired when the command was withdrawn.

A column without a CHECK, as in 0003. Deliveries that ended before have NULL.
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
