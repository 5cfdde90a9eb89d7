"""Add a table for the last refusal of each device."""

import django.db.models.deletion
import django.db.models.functions.datetime
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("devices", "0004_index_comparison_keys"),
    ]

    operations = [
        migrations.CreateModel(
            name="LastRefusal",
            fields=[
                (
                    "device",
                    models.OneToOneField(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="last_refusal",
                        serialize=False,
                        to="devices.device",
                    ),
                ),
                ("at", models.DateTimeField()),
                ("route", models.CharField(max_length=200)),
                ("code", models.CharField(max_length=64)),
                ("written_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ],
        ),
    ]
