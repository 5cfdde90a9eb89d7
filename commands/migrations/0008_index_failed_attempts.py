"""Replace two indexes of attempts by indexes that contain only attempts with an error.

With the old indexes, each push wrote four index entries.

The old indexes are dropped when the new indexes exist. The previous version of NexMDM works without the old indexes,
but more slowly.
"""

from typing import Final

from django.contrib.postgres.operations import AddIndexConcurrently, RemoveIndexConcurrently
from django.db import migrations, models

_INDEXES: Final = (
    models.Index(
        name="attempt_fcm_error", fields=["fcm_error", "-id"], condition=models.Q(("fcm_error", ""), _negated=True)
    ),
    models.Index(name="attempt_http_failure", fields=["http_status", "-id"], condition=models.Q(http_status__gt=200)),
)


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("commands", "0007_device_at_the_end")]

    operations = [
        *(AddIndexConcurrently("attempt", index) for index in _INDEXES),
        RemoveIndexConcurrently("attempt", "attempt_by_fcm_error"),
        RemoveIndexConcurrently("attempt", "attempt_by_http_status"),
    ]
