"""Chain the existing audit entries in batches. Then add the trigger that chains new entries.

The migration locks the table twice, for a moment. The first lock waits until all transactions that write entries have
ended. After this lock, each new entry has a higher id than all earlier entries. Under the second lock, the last entries
are chained and the triggers are created. A second run continues an interrupted run.
"""

from typing import Final

from django.apps.registry import Apps
from django.db import migrations, transaction
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

BATCH: Final = 5000
EVERY: Final = 2**63 - 1

_SEAL: Final = """
    CREATE OR REPLACE FUNCTION nexmdm_audit_seal(upto bigint, most bigint) RETURNS bigint LANGUAGE plpgsql AS $$
    DECLARE
        entry nexmdm_auditentry;
        newest nexmdm_auditmark;
        sealed bigint := 0;
    BEGIN
        INSERT INTO nexmdm_auditmark (name, entry_id, hash) VALUES ('newest', 0, repeat('0', 64))
            ON CONFLICT DO NOTHING;
        SELECT * INTO newest FROM nexmdm_auditmark WHERE name = 'newest';
        FOR entry IN
            SELECT * FROM nexmdm_auditentry WHERE id > newest.entry_id AND id <= upto ORDER BY id LIMIT most
        LOOP
            entry.previous := newest.hash;
            newest.entry_id := entry.id;
            newest.hash := nexmdm_audit_hash(entry);
            UPDATE nexmdm_auditentry SET previous = entry.previous, hash = newest.hash WHERE id = entry.id;
            sealed := sealed + 1;
        END LOOP;
        UPDATE nexmdm_auditmark SET entry_id = newest.entry_id, hash = newest.hash WHERE name = 'newest';
        RETURN sealed;
    END $$
"""
_LOCK: Final = "LOCK TABLE nexmdm_auditentry IN SHARE ROW EXCLUSIVE MODE"
_CHANGE_OVER: Final = """
    CREATE TRIGGER audit_appended BEFORE INSERT ON nexmdm_auditentry
        FOR EACH ROW EXECUTE FUNCTION nexmdm_audit_append();
    CREATE TRIGGER audit_not_changed BEFORE UPDATE ON nexmdm_auditentry
        FOR EACH ROW EXECUTE FUNCTION nexmdm_audit_refuse();
    DROP FUNCTION nexmdm_audit_seal(bigint, bigint)
"""
_CHANGE_BACK: Final = """
    DROP TRIGGER IF EXISTS audit_not_changed ON nexmdm_auditentry;
    DROP TRIGGER IF EXISTS audit_appended ON nexmdm_auditentry
"""


def seal(_: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Chain the existing entries, and create the triggers for new entries."""
    connection = schema_editor.connection
    with connection.cursor() as cursor:
        cursor.execute(_CHANGE_BACK)
        cursor.execute(_SEAL)
        with transaction.atomic(connection.alias):
            cursor.execute(_LOCK)
            cursor.execute("SELECT coalesce(max(id), 0) FROM nexmdm_auditentry")
            (upto,) = cursor.fetchone()
        sealed = BATCH
        while sealed == BATCH:
            cursor.execute("SELECT nexmdm_audit_seal(%s, %s)", [upto, BATCH])
            (sealed,) = cursor.fetchone()
        with transaction.atomic(connection.alias):
            cursor.execute(_LOCK)
            cursor.execute("SELECT nexmdm_audit_seal(%s, %s)", [EVERY, EVERY])
            cursor.execute(_CHANGE_OVER)


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("nexmdm", "0003_audit_chain")]

    operations = [migrations.RunPython(seal, lambda _, schema_editor: schema_editor.execute(_CHANGE_BACK))]
