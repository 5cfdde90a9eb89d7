"""How the admin site shows rows: read-only, newest first, and just as fast when there are a million of them.

Nothing is counted and no page has an OFFSET: a list reads one page by falling key, and the next one continues below it.
"""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Final
from urllib.parse import urlencode
from uuid import UUID

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.utils import display_for_value, flatten_fieldsets
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import ValidationError
from django.db.models import Model, Q, QuerySet
from django.db.models.functions import Now
from django.forms import BaseInlineFormSet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Any]
    TabularInline = admin.TabularInline[Any, Any]
    InlineFormSet = BaseInlineFormSet[Any, Any, Any]
else:
    ModelAdmin, TabularInline, InlineFormSet = admin.ModelAdmin, admin.TabularInline, BaseInlineFormSet

BEFORE: Final = "before"
"""The query parameter that continues a list below a key."""

EVERY: Final = 2**62
LONGEST_TEXT: Final = 64_000
NOTHING: Final = "-"


class NewestFirst(ChangeList):
    """One page of a list, in the one order that an index serves."""

    older: str = ""
    continued: bool = False

    def get_queryset(self, request: HttpRequest, exclude_parameters: list[str | None] | None = None) -> QuerySet[Any]:
        """Return the filtered rows; links to a filter or a search begin at the top again."""
        self.continued = BEFORE in self.params
        self.params.pop(BEFORE, None)
        self.filter_params.pop(BEFORE, None)
        return super().get_queryset(request, exclude_parameters)

    def get_ordering(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[Any]:  # noqa: ARG002
        """Return the order, which no query parameter changes."""
        return list(self.model_admin.ordering or ["-pk"])

    def get_results(self, request: HttpRequest) -> None:
        """Read one page, and one row more to know whether there are older ones."""
        # The keys first: sorting them must not carry, nor join, the columns of all the rows that match.
        keys = self._below(request.GET.get(BEFORE)).values("pk")[: self.list_per_page + 1]
        rows = list(self.root_queryset.filter(pk__in=keys).order_by(*self.queryset.query.order_by))
        self.result_list = rows[: self.list_per_page]
        self.result_count = self.full_result_count = len(self.result_list)
        if len(rows) > self.list_per_page:
            self.older = self.get_query_string({BEFORE: self.result_list[-1].pk})
        self.multi_page = self.can_show_all = self.show_full_result_count = self.show_admin_actions = False

    def _below(self, key: str | None) -> QuerySet[Any]:
        rows: QuerySet[Any] = self.queryset
        if "\0" in (key or ""):
            raise IncorrectLookupParameters
        try:
            return rows if key is None else rows.filter(pk__lt=key)
        except (ValueError, ValidationError) as error:
            raise IncorrectLookupParameters(error) from error


class _ReadOnly:
    """Every active member of staff may look, and nobody may touch."""

    admin_site: admin.AdminSite

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return self.admin_site.has_permission(request)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.admin_site.has_permission(request)

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        shown: Any = self
        return flatten_fieldsets(shown.get_fieldsets(request, obj))


class ReadOnlyAdmin(_ReadOnly, ModelAdmin):
    """A window on one table. Only what `fields` or `fieldsets` and `list_display` name is shown.

    A list can be narrowed by its filters, its search box, and the lookups in `linked_by`: no other column can be asked
    for, so that nobody guesses a secret letter by letter.
    """

    linked_by: ClassVar[Sequence[str]] = ()

    actions = None
    sortable_by: ClassVar = ()
    list_per_page = 100
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    view_on_site = False
    change_list_template = "browsing/list.html"
    change_form_template = "browsing/row.html"

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:  # noqa: ARG002
        """Return the list that counts nothing."""
        return NewestFirst

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:  # noqa: ARG002
        """Tell whether a query parameter may narrow the list."""
        filters = (getattr(one, "parameter_name", None) for one in self.get_list_filter(request))
        return lookup in self.linked_by or lookup in filters

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """Return the row with this key, or None, also for keys that PostgreSQL would refuse."""
        return None if "\0" in object_id else super().get_object(request, object_id, from_field)

    def get_search_results(
        self,
        request: HttpRequest,  # noqa: ARG002
        queryset: QuerySet[Any],
        search_term: str,
    ) -> tuple[QuerySet[Any], bool]:
        """Look a whole id up exactly; take anything else as the start of a name."""
        text = search_term.strip()
        if not text or not self.search_fields:
            return queryset, False
        try:
            key = UUID(text)
        except ValueError:
            return queryset.filter(self.named(text)), False
        return queryset.filter(self.identified(key)), False

    def identified(self, key: UUID) -> Q:
        """Return the condition that a searched id stands for."""
        return Q(pk=key)

    def named(self, text: str) -> Q:
        """Return the condition that a searched text stands for."""
        raise NotImplementedError


class NewestRows(InlineFormSet):
    """The newest rows of an inline, and no more of them than a page can take."""

    most = 100

    def get_queryset(self) -> QuerySet[Any]:
        """Return the newest rows, read once."""
        if not hasattr(self, "_newest"):
            self._newest = super().get_queryset().order_by("-pk")[: self.most]
        return self._newest


class ReadOnlyInline(_ReadOnly, TabularInline):
    """The newest rows that belong to the one shown."""

    template = "browsing/rows.html"
    formset = NewestRows
    extra = 0
    max_num = 0
    can_delete = False


class KnownChoices(admin.SimpleListFilter):
    """A filter whose choices are known beforehand: nothing is read to offer them. An unknown choice narrows nothing."""

    def conditions(self) -> dict[str, Q]:
        """Return the choices, each with what it stands for."""
        raise NotImplementedError

    def lookups(self, request: HttpRequest, model_admin: ModelAdmin) -> list[tuple[str, str]]:  # noqa: ARG002
        """Return the choices; each is its own label."""
        return [(choice, choice) for choice in self.conditions()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:  # noqa: ARG002
        """Keep the rows that the choice stands for."""
        condition = self.conditions().get(self.value() or "")
        return queryset if condition is None else queryset.filter(condition)


class Age(KnownChoices):
    """A filter by how long ago something happened at most."""

    title = "age, up to"
    parameter_name = "age"
    column: ClassVar[str]

    spans: ClassVar = {
        "1 hour": timedelta(hours=1),
        "1 day": timedelta(days=1),
        "7 days": timedelta(days=7),
        "30 days": timedelta(days=30),
    }

    def conditions(self) -> dict[str, Q]:
        """Return the spans."""
        return {name: Q(**{f"{self.column}__gte": Now() - span}) for name, span in self.spans.items()}


def all_of(rows: QuerySet[Any]) -> QuerySet[Any]:
    """Return the same keys, found for themselves: PostgreSQL flattens no subquery that has a LIMIT.

    For a filter whose matches may all be old. Left to itself the planner spreads them evenly, and so walks the list
    from its newest row, joining each, until it has met a hundred: that may mean all of them.
    """
    return rows.order_by().values("pk")[:EVERY]


class Column:
    """A column of a list or a page: what a path of attributes leads to. (Under a field's own name, the field wins.)"""

    def __init__(self, path: str, label: str = "") -> None:
        self.follow = attrgetter(path)
        self.short_description = label or path.rpartition(".")[2].replace("_", " ")

    def __call__(self, row: Model) -> str:
        """Return what to show of a row."""
        value = self.follow(row)
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


def link(row: Model, text: object) -> SafeString:
    """Return a link to a row's own page."""
    address = _address(type(row), "change", row.pk)
    return format_html('<a class="nowrap" href="{}">{}</a>', address, text)


def link_to_list(model: type[Model], text: str, **narrowed_by: object) -> SafeString:
    """Return a link to a list, narrowed by these query parameters."""
    return format_html('<a href="{}?{}">{}</a>', _address(model, "changelist"), urlencode(narrowed_by), text)


def _address(model: type[Model], page: str, *key: object) -> str:
    label = model._meta.label_lower.replace(".", "_")  # noqa: SLF001
    return reverse(f"admin:{label}_{page}", args=key)


def moment(value: datetime) -> SafeString:
    """Return a time in UTC, to the second. (Django's own format for people has none.)"""
    return format_html('<span class="nowrap">{}</span>', f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}")


def pretty(value: Any) -> str:
    """Return JSON as people read it, cut where it would outgrow a page."""
    if value is None:
        return NOTHING
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if len(text) > LONGEST_TEXT:
        text = f"{text[:LONGEST_TEXT]}\n… ({len(text)} characters in all)"
    return format_html("<pre>{}</pre>", text)
