"""Template filters that format values as the lists of the admin site do."""

from datetime import datetime
from typing import Any, Final

from django import template
from django.db.models import Model
from django.utils.safestring import SafeString

from nexmdm.common.read_only_admin import columns

register: Final = template.Library()

register.filter("badge", columns.badge)
register.filter("short_id", columns.short_id)


@register.filter
def moment(value: datetime | None) -> str:
    """Return a time as HTML that shows it relative to now, or a dash for None."""
    return columns.NOTHING if value is None else columns.moment(value)


@register.filter
def row_link(row: Model, text: Any = None) -> SafeString:
    """Return a link to the page of `row`. The link shows `text`, or the row's name if `text` is None."""
    return columns.link(row, row if text is None else text)
