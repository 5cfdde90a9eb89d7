"""Store the address of an audit entry without a netmask.

The hash contains the address without a netmask. An INSERT by hand could store an address with a netmask.
"""

from importlib import import_module
from typing import Final

from django.db import migrations

_BEFORE: Final = vars(import_module("nexmdm.migrations.0006_audit_by_links"))

_APPEND: Final = """
    CREATE OR REPLACE FUNCTION nexmdm_audit_append() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        newest nexmdm_auditmark;
        last nexmdm_auditentry;
    BEGIN
        SELECT * INTO newest FROM nexmdm_auditmark WHERE name::text = 'newest' FOR UPDATE;
        IF NOT FOUND THEN
            INSERT INTO nexmdm_auditmark (name, entry_id, hash) VALUES ('newest', 0, repeat('0', 64))
                ON CONFLICT DO NOTHING;
            SELECT * INTO newest FROM nexmdm_auditmark WHERE name::text = 'newest' FOR UPDATE;
        END IF;
        SELECT * INTO last FROM nexmdm_auditentry WHERE id > newest.entry_id ORDER BY id DESC LIMIT 1;
        NEW.id := coalesce(last.id, newest.entry_id) + 1;
        NEW.at := clock_timestamp();
        NEW.address := host(NEW.address)::inet;
        NEW.previous := coalesce(last.hash, newest.hash);
        NEW.hash := nexmdm_audit_hash(NEW);
        RETURN NEW;
    END $$;
"""


class Migration(migrations.Migration):
    dependencies = [("nexmdm", "0007_guard_the_audit_marks")]

    # CREATE OR REPLACE removes the search path of a function. So both directions set it again.
    operations = [migrations.RunSQL(_APPEND + _BEFORE["_PATHS"], f"{_BEFORE['_APPEND']};{_BEFORE['_PATHS']}")]
