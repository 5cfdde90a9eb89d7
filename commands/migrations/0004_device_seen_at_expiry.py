"""Add a column for the last heartbeat of a device before its command expired.

Without the column, this time is lost, because the presence contains only the newest heartbeat.
"""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("commands", "0003_bounded_reports")]

    operations = [
        migrations.AddField("delivery", "device_seen_at", models.DateTimeField(null=True, blank=True)),
    ]
