"""Create the table with the counters of the rate limits.

The table is unlogged, because the counters may be lost in a crash.
"""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("nexmdm", "0001_initial")]

    operations = [
        migrations.RunSQL(
            sql="""
                CREATE UNLOGGED TABLE nexmdm_counter (
                    key varchar(250) PRIMARY KEY,
                    value bigint NOT NULL,
                    expires_at timestamptz NOT NULL
                ) WITH (fillfactor = 50)
            """,
            reverse_sql="DROP TABLE nexmdm_counter",
        )
    ]
