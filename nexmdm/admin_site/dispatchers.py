"""The admin page of the dispatchers that are alive."""

from typing import ClassVar

from nexmdm.common.read_only_admin.base import ReadOnlyAdmin
from nexmdm.common.read_only_admin.columns import Column


class DispatcherSeenAdmin(ReadOnlyAdmin):
    """Which dispatchers are alive, and whether they can push."""

    list_display = ("name", "started", "last_seen", "circuit", "circuit_reason")
    fields: ClassVar = ["name", "started", "last_seen", "circuit", "circuit_reason"]
    # They are forgotten after a day, so one page holds them all.
    ordering: ClassVar = ["-last_seen_at"]
    list_per_page = 1000

    started = Column("started_at")
    last_seen = Column("last_seen_at")
