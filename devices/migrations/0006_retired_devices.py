"""Keep when a device was retired; until then `revoked_at` says all that the version before needs to know of it."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("devices", "0005_last_refusal")]

    operations = [
        migrations.AddField("device", "retired_at", models.DateTimeField(null=True, blank=True)),
    ]
