"""Add the comparison keys of aliases and hardware ids, and the address of an enrollment.

`manage.py migrate` and the dispatcher fill the new columns. The previous version of NexMDM changes an alias without
changing its key. In this case, a trigger deletes the key, so that the key is filled in again.
"""

from typing import Final

from django.db import migrations, models

_FORGET_KEY: Final = """
    CREATE FUNCTION devices_forget_alias_key() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.alias_key := NULL;
        RETURN NEW;
    END $$;
    CREATE TRIGGER device_alias_without_key BEFORE UPDATE OF alias ON devices_device FOR EACH ROW
        WHEN (NEW.alias IS DISTINCT FROM OLD.alias AND NEW.alias_key IS NOT DISTINCT FROM OLD.alias_key)
        EXECUTE FUNCTION devices_forget_alias_key();
"""
_REVERSE: Final = """
    DROP TRIGGER device_alias_without_key ON devices_device;
    DROP FUNCTION devices_forget_alias_key();
"""


class Migration(migrations.Migration):
    dependencies = [("devices", "0002_presence_stays_in_place")]

    operations = [
        migrations.AddField(
            model_name="device",
            name="alias_key",
            field=models.TextField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="device",
            name="enrolled_from",
            field=models.GenericIPAddressField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="device",
            name="hardware_key",
            field=models.TextField(blank=True, null=True),
        ),
        migrations.RunSQL(_FORGET_KEY, _REVERSE),
    ]
