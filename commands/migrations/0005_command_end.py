"""Store when a command ended, and its outcome. The columns have no CHECK; migration 0003 explains why."""

from django.db import migrations, models

_OUTCOMES = ("succeeded", "partial", "failed", "expired", "cancelled")


class Migration(migrations.Migration):
    dependencies = [("commands", "0004_device_seen_at_expiry")]

    operations = [
        migrations.AddField("command", "finished_at", models.DateTimeField(null=True, blank=True)),
        migrations.AddField(
            "command",
            "outcome",
            models.CharField(
                max_length=16, null=True, blank=True, choices=[(name, name.capitalize()) for name in _OUTCOMES]
            ),
        ),
    ]
