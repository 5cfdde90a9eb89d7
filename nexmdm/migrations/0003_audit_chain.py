"""Add the columns of the audit chain, and a trigger that allows only retention to delete entries.

The migration neither reads nor rewrites existing entries. The previous version of NexMDM can still write entries.
"""

from typing import Final

from django.db import migrations, models

# nexmdm/audit/chain.py computes the same hash in Python.
_HASH: Final = """
    CREATE FUNCTION nexmdm_audit_hash(entry nexmdm_auditentry) RETURNS text LANGUAGE sql STABLE AS $$
        SELECT encode(sha256(convert_to(json_build_array(
            'nexmdm audit 1'::text, entry.previous, entry.id,
            to_char(entry.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), entry.principal, entry.admin_key_id,
            entry.idempotency_key, host(entry.address), entry.method, entry.path, entry.body_sha256, entry.status,
            entry.code, entry.request_id, entry.correlation_id
        )::text, 'UTF8')), 'hex')
    $$
"""
# Each insertion locks the mark `newest` until its commit. Other insertions wait for this lock.
_APPEND: Final = """
    CREATE FUNCTION nexmdm_audit_append() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        newest nexmdm_auditmark;
    BEGIN
        INSERT INTO nexmdm_auditmark (name, entry_id, hash) VALUES ('newest', 0, repeat('0', 64))
            ON CONFLICT DO NOTHING;
        SELECT * INTO newest FROM nexmdm_auditmark WHERE name = 'newest' FOR UPDATE;
        NEW.id := newest.entry_id + 1;
        NEW.at := clock_timestamp();
        NEW.previous := newest.hash;
        NEW.hash := nexmdm_audit_hash(NEW);
        UPDATE nexmdm_auditmark SET entry_id = NEW.id, hash = NEW.hash WHERE name = 'newest';
        RETURN NEW;
    END $$
"""
# Retention moves the mark `pruned` first. Then it may delete the entries up to this mark.
_REFUSE: Final = """
    CREATE FUNCTION nexmdm_audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'DELETE' THEN
            IF OLD.id <= (SELECT entry_id FROM nexmdm_auditmark WHERE name = 'pruned') THEN
                RETURN OLD;
            END IF;
        END IF;
        RAISE EXCEPTION 'The audit is append-only: % is refused.', TG_OP
            USING ERRCODE = 'insufficient_privilege', HINT = 'Only retention deletes, from the oldest entry on.';
    END $$
"""
_GUARD: Final = """
    CREATE TRIGGER audit_not_deleted BEFORE DELETE ON nexmdm_auditentry
        FOR EACH ROW EXECUTE FUNCTION nexmdm_audit_refuse();
    CREATE TRIGGER audit_not_truncated BEFORE TRUNCATE ON nexmdm_auditentry
        FOR EACH STATEMENT EXECUTE FUNCTION nexmdm_audit_refuse()
"""
_UNGUARD: Final = """
    DROP TRIGGER audit_not_truncated ON nexmdm_auditentry;
    DROP TRIGGER audit_not_deleted ON nexmdm_auditentry
"""


class Migration(migrations.Migration):
    dependencies = [("nexmdm", "0002_counters")]

    operations = [
        migrations.CreateModel(
            name="AuditMark",
            fields=[
                ("name", models.CharField(max_length=16, primary_key=True, serialize=False)),
                ("entry_id", models.BigIntegerField()),
                ("hash", models.CharField(max_length=64)),
            ],
        ),
        *(
            migrations.AddField("auditentry", name, models.CharField(blank=blank, db_default="", max_length=length))
            for name, length, blank in (
                ("admin_key_id", 8, True),
                ("idempotency_key", 64, True),
                ("previous", 64, False),
                ("hash", 64, False),
            )
        ),
        migrations.RunSQL(_HASH, "DROP FUNCTION nexmdm_audit_hash(nexmdm_auditentry)"),
        migrations.RunSQL(_APPEND, "DROP FUNCTION nexmdm_audit_append()"),
        migrations.RunSQL(_REFUSE, "DROP FUNCTION nexmdm_audit_refuse()"),
        migrations.RunSQL(_GUARD, _UNGUARD),
    ]
