"""Add a column to devices: the number of pushes in a row that failed. If the push token changes, a trigger sets the
count to 0.

The trigger is necessary because the previous version changes push tokens and does not know this column.
"""

from typing import Final

from django.db import migrations, models

_COUNT_ANEW: Final = """
    CREATE FUNCTION devices_count_pushes_anew() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.push_failures := 0;
        RETURN NEW;
    END $$;
    CREATE TRIGGER device_push_token_counts_anew BEFORE UPDATE OF push_token ON devices_device FOR EACH ROW
        WHEN (NEW.push_token IS DISTINCT FROM OLD.push_token AND NEW.push_failures <> 0)
        EXECUTE FUNCTION devices_count_pushes_anew();
"""
_REVERSE: Final = """
    DROP TRIGGER device_push_token_counts_anew ON devices_device;
    DROP FUNCTION devices_count_pushes_anew();
"""


class Migration(migrations.Migration):
    dependencies = [("devices", "0006_retired_devices")]

    operations = [
        # No PositiveSmallIntegerField: for its CHECK, PostgreSQL would read the whole table under an exclusive lock.
        migrations.AddField("device", "push_failures", models.SmallIntegerField(default=0, db_default=0)),
        migrations.RunSQL(_COUNT_ANEW, _REVERSE),
    ]
