"""Move the audit mark `newest` after the insertion of an entry. Refuse to delete an entry younger than a day.

Before this migration, the mark moved before the insertion. Now a trigger can compare the mark with a stored entry, and
0007 adds this trigger. 0007 is a separate migration to avoid a deadlock: a writer locks the entries first, and the
marks second. So a migration must not lock both tables.
"""

from importlib import import_module
from typing import Final

from django.db import migrations

_BEFORE: Final = vars(import_module("nexmdm.migrations.0003_audit_chain"))

# Each insertion locks the mark `newest` until its commit. Other insertions wait for this lock. If a statement inserts
# several entries, the mark moves only at the end. So the function looks for entries after the mark.
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
        NEW.previous := coalesce(last.hash, newest.hash);
        NEW.hash := nexmdm_audit_hash(NEW);
        RETURN NEW;
    END $$
"""
_FOLLOW: Final = """
    CREATE FUNCTION nexmdm_audit_follow() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        UPDATE nexmdm_auditmark SET entry_id = NEW.id, hash = NEW.hash WHERE name::text = 'newest';
        RETURN NULL;
    END $$
"""
# Retention moves the mark `pruned` first. Then it may delete the entries up to this mark.
_REFUSE: Final = """
    CREATE OR REPLACE FUNCTION nexmdm_audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'DELETE' THEN
            IF OLD.at < clock_timestamp() - interval '1 day'
                AND OLD.id <= (SELECT entry_id FROM nexmdm_auditmark WHERE name::text = 'pruned')
            THEN
                RETURN OLD;
            END IF;
        END IF;
        RAISE EXCEPTION 'The audit is append-only: % is refused.', TG_OP
            USING ERRCODE = 'insufficient_privilege',
                HINT = 'Only retention may delete entries: oldest first, and only entries that are older than a day.';
    END $$
"""
_TRIGGER: Final = """
    CREATE TRIGGER audit_followed AFTER INSERT ON nexmdm_auditentry
        FOR EACH ROW EXECUTE FUNCTION nexmdm_audit_follow()
"""
# With a fixed search path, the functions never use tables or functions of the caller. By default, PostgreSQL finds a
# temporary table first.
_PATHS: Final = """
    DO $do$ DECLARE
        ours text := (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'nexmdm_auditentry'::regclass);
        name text;
    BEGIN
        FOREACH name IN ARRAY ARRAY['append()', 'follow()', 'refuse()', 'hash(nexmdm_auditentry)'] LOOP
            EXECUTE format('ALTER FUNCTION nexmdm_audit_%s SET search_path = pg_catalog, %s, pg_temp', name, ours);
        END LOOP;
    END $do$
"""


def _again(function: str) -> str:
    return function.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")


class Migration(migrations.Migration):
    dependencies = [("nexmdm", "0005_audit_mark_at")]

    operations = [
        migrations.RunSQL(_FOLLOW, "DROP FUNCTION nexmdm_audit_follow()"),
        # This trigger comes first. Its lock waits for transactions that still use the earlier function.
        migrations.RunSQL(_TRIGGER, "DROP TRIGGER audit_followed ON nexmdm_auditentry"),
        migrations.RunSQL(_APPEND, _again(_BEFORE["_APPEND"])),
        migrations.RunSQL(_REFUSE, _again(_BEFORE["_REFUSE"])),
        migrations.RunSQL(_PATHS, _again(_BEFORE["_HASH"])),
    ]
