"""Store when a device was retired. The previous version reads only `revoked_at`."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("devices", "0005_last_refusal")]

    operations = [
        migrations.AddField("device", "retired_at", models.DateTimeField(null=True, blank=True)),
    ]
