"""Add the column `at` to the audit marks: the time at which the entry of the mark was written."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("nexmdm", "0004_seal_the_audit")]

    operations = [migrations.AddField("auditmark", "at", models.DateTimeField(null=True))]
