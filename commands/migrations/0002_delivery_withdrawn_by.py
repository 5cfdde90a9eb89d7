"""Store what cancelled a delivery. Deliveries that were cancelled before this migration have NULL."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("commands", "0001_initial")]

    operations = [
        migrations.AddField(
            "delivery",
            "withdrawn_by",
            models.CharField(
                max_length=16,
                choices=[
                    ("admin", "an admin cancelled the command"),
                    ("superseded", "a newer command of the same action took its place"),
                    ("revocation", "the device was revoked"),
                    ("enrollment", "the device was enrolled again"),
                ],
                null=True,
                blank=True,
            ),
        )
    ]
