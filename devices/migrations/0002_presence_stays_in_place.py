"""Let PostgreSQL leave free room on each page of the presence table, and vacuum the table often.

Each heartbeat writes a new version of a row. With free room, the new version is on the same page as the old version.
"""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("devices", "0001_initial")]

    operations = [
        migrations.RunSQL(
            sql="""
                ALTER TABLE devices_presence SET (
                    fillfactor = 50,
                    autovacuum_vacuum_scale_factor = 0.05,
                    autovacuum_vacuum_cost_delay = 0
                )
            """,
            reverse_sql="""
                ALTER TABLE devices_presence RESET (
                    fillfactor, autovacuum_vacuum_scale_factor, autovacuum_vacuum_cost_delay
                )
            """,
        )
    ]
