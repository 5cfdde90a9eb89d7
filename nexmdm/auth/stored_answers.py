"""Stored answers: kept for a day, then deleted."""

from datetime import timedelta
from typing import Final

from django.db.models.functions import Now

from nexmdm.models import StoredAnswer

KEPT: Final = timedelta(hours=24)
SWEEP_BATCH: Final = 5000


def forget_old_answers() -> int:
    """Delete answers older than a day, a limited number at a time; return how many."""
    old = StoredAnswer.objects.filter(created_at__lt=Now() - KEPT).order_by("created_at").values_list("id", flat=True)
    deleted, _ = StoredAnswer.objects.filter(id__in=list(old[:SWEEP_BATCH])).delete()
    return deleted
