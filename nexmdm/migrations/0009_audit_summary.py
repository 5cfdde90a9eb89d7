"""Add the summary to audit entries, and include it in the hash.

Entries without a summary keep their hashes. The previous version of NexMDM can still write entries without a summary.
"""

from importlib import import_module
from typing import Any, Final

from django.db import migrations, models

_CHAIN: Final = vars(import_module("nexmdm.migrations.0003_audit_chain"))
_LINKS: Final = vars(import_module("nexmdm.migrations.0006_audit_by_links"))

# nexmdm/audit/chain.py computes the same hash in Python.
_HASH: Final = """
    CREATE OR REPLACE FUNCTION nexmdm_audit_hash(entry nexmdm_auditentry) RETURNS text LANGUAGE sql STABLE AS $$
        SELECT encode(sha256(convert_to(CASE
            WHEN entry.action = '' AND entry.target = '' AND entry.device_count IS NULL AND entry.dry_run IS NULL
            THEN json_build_array(
                'nexmdm audit 1'::text, entry.previous, entry.id,
                to_char(entry.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), entry.principal,
                entry.admin_key_id, entry.idempotency_key, host(entry.address), entry.method, entry.path,
                entry.body_sha256, entry.status, entry.code, entry.request_id, entry.correlation_id
            )
            ELSE json_build_array(
                'nexmdm audit 2'::text, entry.previous, entry.id,
                to_char(entry.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), entry.principal,
                entry.admin_key_id, entry.idempotency_key, host(entry.address), entry.method, entry.path,
                entry.body_sha256, entry.status, entry.code, entry.request_id, entry.correlation_id,
                entry.action, entry.target, entry.device_count, entry.dry_run
            )
        END::text, 'UTF8')), 'hex')
    $$;
"""
_HASH_BEFORE: Final = _CHAIN["_HASH"].replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")


def _added(name: str, field: "models.Field[Any, Any]") -> migrations.AddField:
    return migrations.AddField("auditentry", name, field)


class Migration(migrations.Migration):
    dependencies = [("nexmdm", "0008_audit_addresses")]

    operations = [
        _added("action", models.CharField(blank=True, db_default="", max_length=64)),
        _added("target", models.CharField(blank=True, db_default="", max_length=200)),
        _added("device_count", models.IntegerField(blank=True, null=True)),
        _added("dry_run", models.BooleanField(blank=True, null=True)),
        # CREATE OR REPLACE removes the search path of a function. So both directions set it again.
        migrations.RunSQL(_HASH + _LINKS["_PATHS"], f"{_HASH_BEFORE};{_LINKS['_PATHS']}"),
    ]
