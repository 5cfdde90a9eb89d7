"""Replace two indexes of attempts. The new indexes contain only attempts with an error.

The attempt of an accepted push is in none of the new indexes. Therefore the new indexes make each accepted push
cheaper.

The old indexes are dropped after the new indexes are built. The previous version of NexMDM works without the old
indexes, but more slowly.
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
