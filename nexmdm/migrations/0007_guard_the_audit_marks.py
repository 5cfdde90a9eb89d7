"""Allow an audit mark to move only to an existing entry.

If retention moves the mark `pruned`, retention must delete all entries up to the mark in the same transaction.
"""

from typing import Final

from django.db import migrations

# An INSERT of an existing name is allowed here: it fails, does nothing (ON CONFLICT), or becomes an UPDATE.
_GUARD: Final = """
    CREATE FUNCTION nexmdm_audit_guard() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        entry nexmdm_auditentry;
    BEGIN
        SELECT * INTO entry FROM nexmdm_auditentry WHERE id = NEW.entry_id AND hash::text = NEW.hash::text;
        IF TG_OP = 'INSERT' AND (
            EXISTS (SELECT FROM nexmdm_auditmark WHERE name::text = NEW.name::text)
            OR NEW.name::text = 'newest' AND NEW.entry_id = 0 AND NEW.hash::text = repeat('0', 64)
                AND NOT EXISTS (SELECT FROM nexmdm_auditentry)
        ) THEN
            RETURN NEW;
        END IF;
        IF TG_OP = 'UPDATE' AND OLD.name::text = 'newest' AND NEW.name::text = 'newest'
            AND entry.id = OLD.entry_id + 1 AND entry.previous::text = OLD.hash::text
        THEN
            RETURN NEW;
        END IF;
        IF NEW.name::text = 'pruned' AND entry.id = NEW.entry_id
            AND (TG_OP = 'INSERT' OR OLD.name::text = 'pruned' AND OLD.entry_id < entry.id)
            AND NOT EXISTS (
                SELECT FROM nexmdm_auditentry WHERE id <= entry.id AND at >= clock_timestamp() - interval '1 day'
            )
        THEN
            NEW.at := entry.at;
            RETURN NEW;
        END IF;
        RAISE EXCEPTION 'A row of nexmdm_auditmark must match the audit entries: % is refused.', TG_OP
            USING ERRCODE = 'insufficient_privilege',
                HINT = 'Only retention may change the mark of deleted entries, to an entry that is older than a day.';
    END $$
"""
_PREFIX: Final = """
    CREATE FUNCTION nexmdm_audit_prefix() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF EXISTS (SELECT FROM nexmdm_auditentry WHERE id <= NEW.entry_id) THEN
            RAISE EXCEPTION 'The mark of deleted entries is at entry %, but earlier entries still exist.', NEW.entry_id
                USING ERRCODE = 'insufficient_privilege',
                    HINT = 'In one transaction, retention changes the mark and deletes all entries up to the mark.';
        END IF;
        RETURN NULL;
    END $$
"""
_TRIGGERS: Final = """
    CREATE TRIGGER audit_mark_guarded BEFORE INSERT OR UPDATE OR DELETE ON nexmdm_auditmark
        FOR EACH ROW EXECUTE FUNCTION nexmdm_audit_guard();
    CREATE TRIGGER audit_mark_not_truncated BEFORE TRUNCATE ON nexmdm_auditmark
        FOR EACH STATEMENT EXECUTE FUNCTION nexmdm_audit_refuse();
    CREATE CONSTRAINT TRIGGER audit_mark_takes_all AFTER INSERT OR UPDATE ON nexmdm_auditmark
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.name = 'pruned')
        EXECUTE FUNCTION nexmdm_audit_prefix()
"""
_NO_TRIGGERS: Final = """
    DROP TRIGGER audit_mark_takes_all ON nexmdm_auditmark;
    DROP TRIGGER audit_mark_not_truncated ON nexmdm_auditmark;
    DROP TRIGGER audit_mark_guarded ON nexmdm_auditmark
"""
# With a fixed search path, the functions never use tables or functions of the caller. By default, PostgreSQL finds a
# temporary table first.
_PATHS: Final = """
    DO $do$ DECLARE
        ours text := (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'nexmdm_auditmark'::regclass);
        name text;
    BEGIN
        FOREACH name IN ARRAY ARRAY['guard()', 'prefix()'] LOOP
            EXECUTE format('ALTER FUNCTION nexmdm_audit_%s SET search_path = pg_catalog, %s, pg_temp', name, ours);
        END LOOP;
    END $do$
"""


class Migration(migrations.Migration):
    dependencies = [("nexmdm", "0006_audit_by_links")]

    operations = [
        migrations.RunSQL(_GUARD, "DROP FUNCTION nexmdm_audit_guard()"),
        migrations.RunSQL(_PREFIX, "DROP FUNCTION nexmdm_audit_prefix()"),
        migrations.RunSQL(_PATHS, migrations.RunSQL.noop),
        migrations.RunSQL(_TRIGGERS, _NO_TRIGGERS),
    ]
