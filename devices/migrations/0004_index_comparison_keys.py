"""Add indexes for comparison keys, for devices without keys, and for the installation of a push token."""

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models
from django.db.models.functions import MD5, Coalesce, NullIf


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("devices", "0003_comparison_keys")]

    operations = [
        AddIndexConcurrently(
            model_name="device",
            index=models.Index(fields=["alias_key"], name="device_alias_key"),
        ),
        AddIndexConcurrently(
            model_name="device",
            index=models.Index(fields=["hardware_key"], name="device_hardware_key"),
        ),
        AddIndexConcurrently(
            model_name="device",
            index=models.Index(
                condition=models.Q(
                    ("hardware_key", None), models.Q(("alias__isnull", False), ("alias_key", None)), _connector="OR"
                ),
                fields=["id"],
                name="device_without_keys",
            ),
        ),
        AddIndexConcurrently(
            model_name="device",
            index=models.Index(
                MD5(
                    Coalesce(
                        NullIf(
                            models.Func("push_token", models.Value(":"), models.Value(1), function="split_part"),
                            models.Value(""),
                        ),
                        "push_token",
                        output_field=models.CharField(),
                    )
                ),
                name="device_push_owner",
            ),
        ),
    ]
