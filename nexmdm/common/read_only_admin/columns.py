"""Columns and links of the read-only admin pages: names, states, times, ids."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, Final
from urllib.parse import urlencode
from uuid import UUID

from django.contrib.admin.utils import display_for_value
from django.db.models import Model
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from nexmdm.common.read_only_admin import page_time

LONGEST_TEXT: Final = 64_000
NOTHING: Final = "-"

GOOD, BAD, WARN, BUSY, QUIET = "good", "bad", "warn", "busy", "quiet"
"""The looks of a badge. Each has its own colour and sign (nexmdm/static/nexmdm/site.css)."""

_LOOKS: Final = {
    GOOD: "succeeded online ok accepted closed live",
    BAD: "failed expired offline failing dead rejected token_dead undeliverable refused",
    WARN: "partial retrying retry_later unknown blocked low",
    BUSY: "open pending received waiting in_flight running deferred",
}
_LOOK_OF: Final = {word: look for look, words in _LOOKS.items() for word in words.split()}


class Column:
    """A column of a list or a page, which shows the attribute at a dotted path such as `presence.last_seen_at`.

    Its name in the admin class must not be the name of a field of the model: Django would show that field instead.
    """

    def __init__(self, path: str, label: str = "") -> None:
        self.follow = attrgetter(path)
        self.short_description = label or path.rpartition(".")[2].replace("_", " ")

    def __call__(self, row: Model) -> str:
        """Return the value to show for a row."""
        value = self.follow(row)
        if isinstance(value, bool):
            return "yes" if value else "no"
        return moment(value) if isinstance(value, datetime) else str(display_for_value(value, NOTHING))


class Name(Column):
    """A column with the name of the row itself."""

    def __init__(self, label: str) -> None:
        super().__init__("pk", label)

    def __call__(self, row: Model) -> str:
        """Return the name."""
        return str(row)


class State(Column):
    """A column with a badge: one of the API's words for a state, a push, an outcome or a presence."""

    def __call__(self, row: Model) -> str:
        """Return the badge."""
        value = self.follow(row)
        return badge(str(value)) if value else NOTHING


class Id(Column):
    """A column with a shortened id: a click selects the whole id."""

    def __call__(self, row: Model) -> str:
        """Return the id."""
        return short_id(self.follow(row))


class Link(Column):
    """A column with a link to the page of another row, with its own text."""

    def __init__(self, path: str, label: str = "", text: Callable[[Any], object] = str) -> None:
        super().__init__(path, label)
        self.text = text

    def __call__(self, row: Model) -> SafeString:
        """Return the link."""
        other = self.follow(row)
        return link(other, self.text(other))


class Narrowed(Column):
    """A column with a link to the list, filtered by the same text; `parameter` is the filter."""

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
    """Return a link to a list, filtered by these query parameters."""
    return format_html('<a href="{}">{}</a>', address_of(model, "changelist", **filters), text)


def address_of(model: type[Model], page: str, /, *key: object, **query: object) -> str:
    """Return the address of a model's page: `changelist`, or `change` of the row with this key."""
    label = model._meta.label_lower.replace(".", "_")  # noqa: SLF001
    return reverse(f"admin:{label}_{page}", args=key) + (f"?{urlencode(query)}" if query else "")


def badge(word: str, look: str | None = None) -> SafeString:
    """Return a state as a label. If no look is given, the word decides the look."""
    return format_html('<span class="badge {}">{}</span>', look or _LOOK_OF.get(word, QUIET), word)


def short_id(key: UUID) -> SafeString:
    """Return an id. The style sheet shows only both ends of it, and a click selects the whole id."""
    text = str(key)
    return format_html('<code class="id" title="{}"><span>{}</span>{}</code>', text, text[:-8], text[-8:])


def moment(value: datetime) -> SafeString:
    """Return a time as a relative time, and in UTC to the second. (Lists show the time in UTC only on hover.)"""
    exact = f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"
    return format_html(
        '<time class="moment" datetime="{}" title="{}">{} <span class="exact">{}</span></time>',
        value.astimezone(UTC).isoformat(timespec="seconds"), exact, relative(value, page_time.now()), exact,
    )  # fmt: skip


def relative(value: datetime, now: datetime) -> str:
    """Return the time between now and a past or future time, in its largest unit."""
    seconds = (now - value).total_seconds()
    length = _length(abs(seconds))
    return f"{length} ago" if seconds >= 0 else f"in {length}"


def _length(seconds: float) -> str:
    for unit, size, most in (("s", 1, 60), ("min", 60, 3600), ("h", 3600, 48 * 3600)):
        if seconds < most:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds // 86_400)} days"


def pretty(value: Any) -> str:
    """Return JSON formatted for people, cut if it is too long for a page."""
    if value is None:
        return NOTHING
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if len(text) > LONGEST_TEXT:
        text = f"{text[:LONGEST_TEXT]}\n… ({len(text)} characters in all)"
    return format_html("<pre>{}</pre>", text)
