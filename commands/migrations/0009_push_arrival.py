"""Store how a push arrived at the phone, as the phone reported the arrival."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("commands", "0008_index_failed_attempts")]

    operations = [migrations.AddField("delivery", "push_arrival", models.JSONField(blank=True, null=True))]
