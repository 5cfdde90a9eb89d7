"""The page of the dispatchers."""

from typing import ClassVar

from django.contrib import admin
from django.utils.safestring import SafeString

from commands.push.circuit_breaker import CLOSED
from nexmdm.common.read_only_admin.base import ReadOnlyAdmin
from nexmdm.common.read_only_admin.columns import BAD, GOOD, Column, badge
from nexmdm.models import DispatcherSeen


class DispatcherSeenAdmin(ReadOnlyAdmin):
    """The list of dispatchers, with the state of their circuits."""

    list_display = ("name", "started", "last_seen", "circuit_now", "circuit_reason")
    empty = "To start a dispatcher, run manage.py dispatch. make run also starts a dispatcher."
    fields: ClassVar = ["name", "started", "last_seen", "circuit_now", "circuit_reason"]
    # The row of a dispatcher is deleted at most a day after its end. So one page is long enough for all rows.
    ordering: ClassVar = ["-last_seen_at"]
    list_per_page = 1000

    started = Column("started_at")
    last_seen = Column("last_seen_at")

    @admin.display(description="circuit")
    def circuit_now(self, dispatcher: DispatcherSeen) -> SafeString:
        """Return the state of the circuit. If the state is `open`, pushes wait."""
        return badge(dispatcher.circuit, GOOD if dispatcher.circuit == CLOSED else BAD)
