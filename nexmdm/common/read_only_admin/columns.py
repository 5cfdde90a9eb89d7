"""Columns and links of the admin site's pages: names, states, times and ids."""

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
"""The looks of a badge. Each look has a colour and a sign (nexmdm/static/nexmdm/site.css)."""

_LOOKS: Final = {
    GOOD: "succeeded online ok accepted closed live",
    BAD: "failed expired offline failing dead rejected token_dead undeliverable refused",
    WARN: "partial retrying retry_later unknown blocked low",
    BUSY: "open pending received waiting in_flight running deferred",
}
_LOOK_OF: Final = {word: look for look, words in _LOOKS.items() for word in words.split()}


class Column:
    """A column that shows an attribute of a row. `path` is a dotted path such as `presence.last_seen_at`.

    In the admin class, the column must not have the name of a field of the model: Django would show the field and not
    the column.
    """

    def __init__(self, path: str, label: str = "") -> None:
        self.follow = attrgetter(path)
        self.short_description = label or path.rpartition(".")[2].replace("_", " ")

    def __call__(self, row: Model) -> str:
        """Return the text for a row."""
        value = self.follow(row)
        if isinstance(value, bool):
            return "yes" if value else "no"
        return moment(value) if isinstance(value, datetime) else str(display_for_value(value, NOTHING))


class Name(Column):
    """A column with the name of the row."""

    def __init__(self, label: str) -> None:
        super().__init__("pk", label)

    def __call__(self, row: Model) -> str:
        """Return the name of a row."""
        return str(row)


class State(Column):
    """A column with a badge. The word is a state, a push state, an outcome or a presence of the API."""

    def __call__(self, row: Model) -> str:
        """Return the badge of a row."""
        value = self.follow(row)
        return badge(str(value)) if value else NOTHING


class Id(Column):
    """A column with an id in short form. A click selects the whole id."""

    def __call__(self, row: Model) -> str:
        """Return the id of a row."""
        return short_id(self.follow(row))


class Link(Column):
    """A column with a link to the page of another row. `text` returns the text of the link for that row."""

    def __init__(self, path: str, label: str = "", text: Callable[[Any], object] = str) -> None:
        super().__init__(path, label)
        self.text = text

    def __call__(self, row: Model) -> SafeString:
        """Return the link of a row."""
        other = self.follow(row)
        return link(other, self.text(other))


class Narrowed(Column):
    """A column with a link to the list of rows with the same value. `parameter` is the filter's query parameter."""

    def __init__(self, path: str, parameter: str) -> None:
        super().__init__(path)
        self.parameter = parameter

    def __call__(self, row: Model) -> str:
        """Return the link of a row."""
        text = self.follow(row)
        return link_to_list(type(row), text, **{self.parameter: text}) if text else NOTHING


def link(row: Model, text: object) -> SafeString:
    """Return a link to the page of a row."""
    return format_html('<a class="nowrap" href="{}">{}</a>', address_of(type(row), "change", row.pk), text)


def link_to_list(model: type[Model], text: str, /, **filters: object) -> SafeString:
    """Return a link to a list. `filters` are its query parameters."""
    return format_html('<a href="{}">{}</a>', address_of(model, "changelist", **filters), text)


def address_of(model: type[Model], page: str, /, *key: object, **query: object) -> str:
    """Return the URL of a model's page. `page` is `changelist`, or `change` for the row with the key `key`."""
    label = model._meta.label_lower.replace(".", "_")  # noqa: SLF001
    return reverse(f"admin:{label}_{page}", args=key) + (f"?{urlencode(query)}" if query else "")


def badge(word: str, look: str | None = None) -> SafeString:
    """Return a word as a badge. If `look` is None, the word decides the look."""
    return format_html('<span class="badge {}">{}</span>', look or _LOOK_OF.get(word, QUIET), word)


def short_id(key: UUID) -> SafeString:
    """Return an id. The style sheet shows only both ends of the id. A click selects the whole id."""
    text = str(key)
    return format_html('<code class="id" title="{}"><span>{}</span>{}</code>', text, text[:-8], text[-8:])


def moment(value: datetime) -> SafeString:
    """Return a time as relative time, and in UTC with seconds. Lists show the time in UTC only on hover."""
    exact = f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"
    return format_html(
        '<time class="moment" datetime="{}" title="{}">{} <span class="exact">{}</span></time>',
        value.astimezone(UTC).isoformat(timespec="seconds"), exact, relative(value, page_time.now()), exact,
    )  # fmt: skip


def relative(value: datetime, now: datetime) -> str:
    """Return the time between `value` and `now` in its largest unit, such as `5 min ago` or `in 2 h`."""
    seconds = (now - value).total_seconds()
    length = _length(abs(seconds))
    return f"{length} ago" if seconds >= 0 else f"in {length}"


def _length(seconds: float) -> str:
    for unit, size, most in (("s", 1, 60), ("min", 60, 3600), ("h", 3600, 48 * 3600)):
        if seconds < most:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds // 86_400)} days"


def pretty(value: Any) -> str:
    """Return JSON with indentation. A text of more than LONGEST_TEXT characters is cut."""
    if value is None:
        return NOTHING
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if len(text) > LONGEST_TEXT:
        text = f"{text[:LONGEST_TEXT]}\n… ({len(text)} characters in all)"
    return format_html("<pre>{}</pre>", text)
