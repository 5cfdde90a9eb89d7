"""The columns of lists (nexmdm/common/read_only_admin/columns.py) as filters of templates."""

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
    """Return a time as a relative time; a dash if there is none."""
    return columns.NOTHING if value is None else columns.moment(value)


@register.filter
def row_link(row: Model, text: Any = None) -> SafeString:
    """Return a link to a row's own page, under its name or another text."""
    return columns.link(row, row if text is None else text)
