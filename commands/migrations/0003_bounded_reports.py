"""Add columns that count the reports that are not stored as rows.

The columns have no CHECK. For a CHECK, PostgreSQL would read the whole table under an exclusive lock.
"""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("commands", "0002_delivery_withdrawn_by")]

    operations = [
        migrations.AddField("delivery", "reports_not_kept", models.IntegerField(default=0, db_default=0)),
        migrations.AddField("report", "repeat_count", models.IntegerField(default=0, db_default=0)),
        migrations.AddField("report", "last_repeated_at", models.DateTimeField(null=True, blank=True)),
    ]
