"""Store a device's last heartbeat before its command expired. The presence contains only the newest heartbeat."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("commands", "0003_bounded_reports")]

    operations = [
        migrations.AddField("delivery", "device_seen_at", models.DateTimeField(null=True, blank=True)),
    ]
