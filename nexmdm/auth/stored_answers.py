"""The stored answers to signed writes. A stored answer is deleted after a day."""

from datetime import timedelta
from typing import Final

from django.db.models.functions import Now

from nexmdm.models import StoredAnswer

KEPT: Final = timedelta(hours=24)
SWEEP_BATCH: Final = 5000


def forget_old_answers() -> int:
    """Delete up to SWEEP_BATCH stored answers that are older than a day. Return the number of deleted answers."""
    old = StoredAnswer.objects.filter(created_at__lt=Now() - KEPT).order_by("created_at").values_list("id", flat=True)
    deleted, _ = StoredAnswer.objects.filter(id__in=list(old[:SWEEP_BATCH])).delete()
    return deleted
