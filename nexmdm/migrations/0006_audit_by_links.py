"""Move the mark of the newest entry after each entry instead of before it; let no young entry be deleted.

A mark that is moved after the entry can be compared with existing entries, which the next migration does. Only the
entries' table is locked, for a moment: a transaction that appends has this lock, and then requests the mark's lock. So
both locks in one migration could cause a deadlock.
"""

from importlib import import_module
from typing import Final

from django.db import migrations

_BEFORE: Final = vars(import_module("nexmdm.migrations.0003_audit_chain"))

# Appends wait for each other on the mark's row, from here to their commit. If a statement appends several entries, each
# one follows the one before it, although the mark is still at an earlier entry.
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
# Retention moves its mark first, and may then delete the entries up to the mark.
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
                HINT = 'Only retention deletes, from the oldest entry on, and none that is younger than a day.';
    END $$
"""
_TRIGGER: Final = """
    CREATE TRIGGER audit_followed AFTER INSERT ON nexmdm_auditentry
        FOR EACH ROW EXECUTE FUNCTION nexmdm_audit_follow()
"""
# The caller cannot use tables and functions of its own: a temporary table would be found before all others.
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
        # The trigger first: its lock waits for the transactions that have appended in the old way.
        migrations.RunSQL(_TRIGGER, "DROP TRIGGER audit_followed ON nexmdm_auditentry"),
        migrations.RunSQL(_APPEND, _again(_BEFORE["_APPEND"])),
        migrations.RunSQL(_REFUSE, _again(_BEFORE["_REFUSE"])),
        migrations.RunSQL(_PATHS, _again(_BEFORE["_HASH"])),
    ]
