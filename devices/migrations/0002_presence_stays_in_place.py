"""Keep each update of a heartbeat on its page: leave free room on the page, and vacuum often."""

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
