"""Add the table with the push health of past hours."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("nexmdm", "0010_find_audit_entries")]

    operations = [
        migrations.CreateModel(
            name="PushHealthHour",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("starts_at", models.DateTimeField()),
                ("field", models.CharField(blank=True, max_length=16)),
                ("value", models.CharField(blank=True, max_length=128)),
                ("attempts", models.IntegerField(default=0)),
                ("accepted", models.IntegerField(default=0)),
                ("answered_by_push", models.IntegerField(default=0)),
                ("answered_by_heartbeat", models.IntegerField(default=0)),
                ("downgraded", models.IntegerField(default=0)),
                ("latencies", models.JSONField(default=dict)),
            ],
            options={
                "indexes": [models.Index(fields=["starts_at"], name="push_health_age")],
                "constraints": [
                    models.UniqueConstraint(fields=("field", "starts_at", "value"), name="push_health_once")
                ],
            },
        ),
    ]
