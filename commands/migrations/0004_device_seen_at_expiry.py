"""Keep when a device was last heard from before its command expired: its later heartbeats would hide that."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("commands", "0003_bounded_reports")]

    operations = [
        migrations.AddField("delivery", "device_seen_at", models.DateTimeField(null=True, blank=True)),
    ]
