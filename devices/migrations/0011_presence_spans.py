"""Add the presence history: the spans in which devices were online, and the service gaps."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("devices", "0010_push_targets"),
    ]

    operations = [
        migrations.CreateModel(
            name="ServiceGap",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("began_at", models.DateTimeField()),
                ("ended_at", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="ServiceMark",
            fields=[
                ("id", models.SmallIntegerField(primary_key=True, serialize=False)),
                ("at", models.DateTimeField()),
            ],
        ),
        migrations.AddField(
            model_name="presence",
            name="online_from",
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.CreateModel(
            name="PresenceSpan",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("online_from", models.DateTimeField()),
                ("offline_at", models.DateTimeField()),
                (
                    "device",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="presence_spans",
                        to="devices.device",
                    ),
                ),
            ],
            options={
                "indexes": [
                    models.Index(fields=["device", "offline_at"], name="presence_span_of_device"),
                    models.Index(fields=["offline_at"], name="presence_span_age"),
                ],
            },
        ),
    ]
