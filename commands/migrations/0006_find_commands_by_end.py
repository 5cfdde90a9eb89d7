"""Add indexes for commands by outcome, for commands that have not ended, for cancelled commands, and for retention."""

from typing import Final

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models

_IS_FINISHED: Final = models.Q(("finished_at", None), _negated=True)
_INDEXES: Final = (
    models.Index(name="command_unfinished", fields=["id"], condition=models.Q(finished_at=None)),
    models.Index(name="command_by_outcome", fields=["outcome", "-id"], condition=_IS_FINISHED),
    models.Index(name="command_cancelled", fields=["-id"], condition=models.Q(("cancelled_at", None), _negated=True)),
    models.Index(name="command_finished", fields=["finished_at"], condition=_IS_FINISHED),
)


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("commands", "0005_command_end")]

    operations = [AddIndexConcurrently("command", index) for index in _INDEXES]
