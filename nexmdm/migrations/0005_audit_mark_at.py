"""Store in each mark the time at which its entry was written."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("nexmdm", "0004_seal_the_audit")]

    operations = [migrations.AddField("auditmark", "at", models.DateTimeField(null=True))]
