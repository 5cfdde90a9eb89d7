"""Store the address of an audit entry as it is hashed: without the netmask that an insert by hand may have."""

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

    # A function that is replaced loses its search path, in this migration and in its reversal.
    operations = [migrations.RunSQL(_APPEND + _BEFORE["_PATHS"], f"{_BEFORE['_APPEND']};{_BEFORE['_PATHS']}")]
