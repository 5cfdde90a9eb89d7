"""Store the kind of each push target. All push targets so far are push tokens."""

from django.db import migrations, models

_KINDS = [("token", "Token"), ("fid", "Fid")]


class Migration(migrations.Migration):
    dependencies = [("devices", "0009_validate_retired_is_revoked")]

    operations = [
        # No CHECK on the kind: to validate it, PostgreSQL would read the whole table under an exclusive lock.
        migrations.AddField(
            "device", "push_kind", models.CharField(choices=_KINDS, db_default="token", default="token", max_length=8)
        ),
        migrations.AddField("device", "push_registered_at", models.DateTimeField(blank=True, null=True)),
        migrations.AddField("device", "push_revived_at", models.DateTimeField(blank=True, null=True)),
    ]
