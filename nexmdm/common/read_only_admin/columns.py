"""Columns and links of the read-only admin pages."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, Final
from urllib.parse import urlencode

from django.contrib.admin.utils import display_for_value
from django.db.models import Model
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

LONGEST_TEXT: Final = 64_000
NOTHING: Final = "-"


class Column:
    """A column of a list or a page: what a path of attributes leads to. (Under a field's own name, the field wins.)"""

    def __init__(self, path: str, label: str = "") -> None:
        self.follow = attrgetter(path)
        self.short_description = label or path.rpartition(".")[2].replace("_", " ")

    def __call__(self, row: Model) -> str:
        """Return what to show of a row."""
        value = self.follow(row)
        if isinstance(value, bool):
            return "yes" if value else "no"
        return moment(value) if isinstance(value, datetime) else str(display_for_value(value, NOTHING))


class Link(Column):
    """A column that leads to the page of another row, under a text of its own."""

    def __init__(self, path: str, label: str = "", text: Callable[[Any], object] = str) -> None:
        super().__init__(path, label)
        self.text = text

    def __call__(self, row: Model) -> SafeString:
        """Return the link."""
        other = self.follow(row)
        return link(other, self.text(other))


class Narrowed(Column):
    """A column that leads to the list of its rows, narrowed to those with the same text; `parameter` is the filter."""

    def __init__(self, path: str, parameter: str) -> None:
        super().__init__(path)
        self.parameter = parameter

    def __call__(self, row: Model) -> str:
        """Return the link."""
        text = self.follow(row)
        return link_to_list(type(row), text, **{self.parameter: text}) if text else NOTHING


def link(row: Model, text: object) -> SafeString:
    """Return a link to a row's own page."""
    return format_html('<a class="nowrap" href="{}">{}</a>', address_of(type(row), "change", row.pk), text)


def link_to_list(model: type[Model], text: str, /, **filters: object) -> SafeString:
    """Return a link to a list, narrowed by these query parameters."""
    return format_html('<a href="{}">{}</a>', address_of(model, "changelist", **filters), text)


def address_of(model: type[Model], page: str, /, *key: object, **query: object) -> str:
    """Return the address of a model's page: `changelist`, or `change` of the row with this key."""
    label = model._meta.label_lower.replace(".", "_")  # noqa: SLF001
    return reverse(f"admin:{label}_{page}", args=key) + (f"?{urlencode(query)}" if query else "")


def moment(value: datetime) -> SafeString:
    """Return a time in UTC, to the second. (Django's own format for people has none.)"""
    day, time = f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}".split()
    return format_html('<span class="moment"><span class="nowrap">{}</span> <span>{}</span></span>', day, time)


def pretty(value: Any) -> str:
    """Return JSON as people read it, cut where it would outgrow a page."""
    if value is None:
        return NOTHING
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if len(text) > LONGEST_TEXT:
        text = f"{text[:LONGEST_TEXT]}\n… ({len(text)} characters in all)"
    return format_html("<pre>{}</pre>", text)
