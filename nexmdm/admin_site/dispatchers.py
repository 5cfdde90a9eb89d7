"""The admin page of the running dispatchers."""

from typing import ClassVar

from django.contrib import admin
from django.utils.safestring import SafeString

from commands.push.circuit_breaker import CLOSED
from nexmdm.common.read_only_admin.base import ReadOnlyAdmin
from nexmdm.common.read_only_admin.columns import BAD, GOOD, Column, badge
from nexmdm.models import DispatcherSeen


class DispatcherSeenAdmin(ReadOnlyAdmin):
    """The list of running dispatchers, each with the state of its circuit."""

    list_display = ("name", "started", "last_seen", "circuit_now", "circuit_reason")
    empty = "To start a dispatcher, run manage.py dispatch. make run also starts a dispatcher."
    fields: ClassVar = ["name", "started", "last_seen", "circuit_now", "circuit_reason"]
    # A dispatcher's row is deleted at most a day after its end, so one page shows all rows.
    ordering: ClassVar = ["-last_seen_at"]
    list_per_page = 1000

    started = Column("started_at")
    last_seen = Column("last_seen_at")

    @admin.display(description="circuit")
    def circuit_now(self, dispatcher: DispatcherSeen) -> SafeString:
        """Return the state of the circuit: `closed` (the dispatcher sends pushes) or `open` (pushes wait)."""
        return badge(dispatcher.circuit, GOOD if dispatcher.circuit == CLOSED else BAD)
