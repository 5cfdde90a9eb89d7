"""Base classes of the admin site's pages. All pages are read-only, and equally fast for tables of every size.

A list reads one page in descending order of the key, without OFFSET. The next page continues below the last key. A list
counts no rows: its total is an estimate of PostgreSQL. If the estimate is smaller than the number of rows on the page,
the page hides the estimate.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final
from uuid import UUID

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.utils import flatten_fieldsets
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import ValidationError
from django.db.models import Model, Q, QuerySet
from django.forms import BaseInlineFormSet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.urls import URLPattern, path
from django.utils.text import capfirst

from nexmdm.common import database
from nexmdm.common.read_only_admin import csv_export
from nexmdm.common.read_only_admin.filters import all_of

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Any]
    TabularInline = admin.TabularInline[Any, Any]
    InlineFormSet = BaseInlineFormSet[Any, Any, Any]
else:
    ModelAdmin, TabularInline, InlineFormSet = admin.ModelAdmin, admin.TabularInline, BaseInlineFormSet

BEFORE: Final = "before"
"""The query parameter of a list's next page. Its value is a key. The page shows only rows with lower keys."""

ROWS_PER_PAGE: Final = 100


class NewestFirst(ChangeList):
    """One page of a list, in descending order of the primary key."""

    older: str = ""
    continued: bool = False
    estimate: int = 0
    """An estimate of the number of all rows. The estimate is 0 if it is unknown, or if the page has more rows."""

    @property
    def estimate_shown(self) -> str:
        """The estimate, formatted for people."""
        return f"{self.estimate:,}"

    def get_queryset(self, request: HttpRequest, exclude_parameters: list[str | None] | None = None) -> QuerySet[Any]:
        """Return the filtered rows. Links of filters and of the search lead to the first page."""
        self.continued = BEFORE in self.params
        self.params.pop(BEFORE, None)
        self.filter_params.pop(BEFORE, None)
        return super().get_queryset(request, exclude_parameters)

    def get_ordering(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[Any]:  # noqa: ARG002
        """Return the order of the list. No query parameter changes it."""
        return list(self.model_admin.ordering or ["-pk"])

    def get_results(self, request: HttpRequest) -> None:
        """Read one page, and one more row to find out whether there is a next page."""
        rows = list(self.page(request.GET.get(BEFORE), self.list_per_page + 1))
        self.result_list = rows[: self.list_per_page]
        shown: Any = self.model_admin
        shown.complete(self.result_list)
        self.result_count = self.full_result_count = len(self.result_list)
        if len(rows) > self.list_per_page:
            self.older = self.get_query_string({BEFORE: self.result_list[-1].pk})
        if self.older and not self.continued and not self.query and not self.filter_params:
            estimate = _estimated(self.model)
            self.estimate = estimate if estimate > self.list_per_page else 0
        self.multi_page = self.can_show_all = self.show_full_result_count = self.show_admin_actions = False

    def page(self, below: Any, most: int) -> QuerySet[Any]:
        """Return at most `most` rows with keys below `below`, or the newest rows if `below` is None."""
        # Select the keys first. PostgreSQL then sorts only keys, and joins other tables only for the rows of the page.
        keys = self._below(below).values("pk")[:most]
        rows: QuerySet[Any] = self.root_queryset.filter(pk__in=keys).order_by(*self.queryset.query.order_by)
        return rows

    def _below(self, key: Any) -> QuerySet[Any]:
        rows: QuerySet[Any] = self.queryset
        if isinstance(key, str) and "\0" in key:
            raise IncorrectLookupParameters
        try:
            return rows if key is None else rows.filter(pk__lt=key)
        except (ValueError, ValidationError) as error:
            raise IncorrectLookupParameters(error) from error


def _estimated(model: type[Model]) -> int:
    table = model._meta.db_table  # noqa: SLF001
    (estimate,) = database.row("SELECT reltuples::bigint FROM pg_class WHERE oid = %s::regclass", [table])
    return max(0, int(estimate))


class _ReadOnly:
    """Each active member of staff may read the rows. No member of staff may change them."""

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
    """The read-only pages of one table. They show only the fields in `fields`, `fieldsets` and `list_display`.

    Only the list's filters, the search, and the lookups in `linked_by` can filter a list. All other lookups are
    refused: with a lookup of a secret column, a client could guess the secret letter by letter.
    """

    linked_by: ClassVar[Sequence[str]] = ()
    exported: ClassVar[Mapping[str, str]] = {}
    """The columns of the CSV. A key is the API's name of the column. A value is the path of the column's value."""

    empty: ClassVar[str] = "Open this list again later."
    """The text that the list shows if the table has no rows."""

    derived: ClassVar[Sequence[str]] = ()
    """The names of further columns of the CSV, which cells() computes."""

    actions = None
    sortable_by: ClassVar = ()
    list_per_page = ROWS_PER_PAGE
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    view_on_site = False
    change_list_template = "read_only_admin/list.html"
    change_form_template = "read_only_admin/row.html"

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:  # noqa: ARG002
        """Return the class of the list."""
        return NewestFirst

    def get_urls(self) -> list[URLPattern]:
        """Return the URLs of the table's pages and of its CSV export."""
        if not self.exported:
            return super().get_urls()
        name = f"{self.opts.app_label}_{self.opts.model_name}_export"
        return [path("export/", self.admin_site.admin_view(self.export_view), name=name), *super().get_urls()]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Return the page with the list. Its title is the plural name of the model."""
        title = capfirst(self.opts.verbose_name_plural)
        context = {"title": title, "exported": self.exported, "empty": self.empty}
        return super().changelist_view(request, context | (extra_context or {}))

    def export_view(self, request: HttpRequest) -> HttpResponseBase:
        """Return the whole filtered list as CSV."""
        try:
            changes: Any = self.get_changelist_instance(request)
        except IncorrectLookupParameters:
            return HttpResponseRedirect("../?e=1")

        def read(below: Any, most: int) -> Sequence[tuple[Any, ...]]:
            return self.cells(changes.page(below, most))

        name = f"{self.opts.verbose_name_plural}-{database.now():%Y%m%dT%H%M%SZ}".replace(" ", "-")
        headings = [*self.exported, *self.derived]
        return csv_export.response(name, headings, read, with_body=request.method == "GET")

    def cells(self, rows: QuerySet[Any]) -> list[tuple[Any, ...]]:
        """Return a tuple for each row: the key of the row, then the cells of the CSV."""
        return list(rows.values_list("pk", *self.exported.values()))

    def complete(self, rows: Sequence[Any]) -> None:
        """Add values that are not columns to the rows of a page. A subclass may override this."""

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:  # noqa: ARG002
        """Return whether this query parameter may filter the list."""
        filters: Any = self.get_list_filter(request)
        known = (name for one in filters for name in getattr(one, "parameters", None) or [one.parameter_name])
        return lookup in self.linked_by or lookup in known

    def name_of(self, row: Any) -> str:
        """Return the name of a row, for the title of its page and the breadcrumbs."""
        return str(row)

    def render_change_form(
        self,
        request: HttpRequest,
        context: dict[str, Any],
        add: bool = False,
        change: bool = False,
        form_url: str = "",
        obj: Any = None,
    ) -> HttpResponse:
        """Return the page of a row. Its title contains the name of the row."""
        name = self.name_of(obj)
        context |= {"title": f"{capfirst(self.opts.verbose_name)} {name}", "subtitle": None, "name": name}
        return super().render_change_form(request, context, add, change, form_url, obj)

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """Return the row with this key, or None. A key that PostgreSQL would refuse also gives None."""
        return None if "\0" in object_id else super().get_object(request, object_id, from_field)

    def get_search_results(
        self,
        request: HttpRequest,  # noqa: ARG002
        queryset: QuerySet[Any],
        search_term: str,
    ) -> tuple[QuerySet[Any], bool]:
        """Search for a whole id by identified(), and for any other text by named()."""
        text = search_term.strip()
        if not text or not self.search_fields:
            return queryset, False
        try:
            key = UUID(text)
        except ValueError:
            return queryset.filter(self.named(text)), False
        return queryset.filter(self.identified(key)), False

    def identified(self, key: UUID) -> Q:
        """Return the condition for a search whose text is the id `key`."""
        return Q(pk=key)

    def named(self, text: str) -> Q:
        """Return the condition for a search of `text`. A subclass with `search_fields` must override this."""
        raise NotImplementedError


class NewestRows(InlineFormSet):
    """The newest rows of an inline, at most `most`. `order` is the order in which the rows are shown."""

    most = 20
    order: ClassVar[Sequence[Any]] = ("-pk",)

    def get_queryset(self) -> QuerySet[Any]:
        """Return the newest rows."""
        if not hasattr(self, "_newest"):
            rows: Any = self.queryset
            newest: QuerySet[Any] = rows.filter(pk__in=all_of(super().get_queryset())).order_by(*self.order)
            self._newest = newest[: self.most]
        return self._newest

    @property
    def total(self) -> int:
        """Return the number of all rows, also of rows that the page does not show."""
        raise NotImplementedError

    @property
    def whole_list(self) -> str:
        """Return a link to the list of all these rows."""
        raise NotImplementedError


class ReadOnlyInline(_ReadOnly, TabularInline):
    """The newest rows that belong to the row of the page."""

    empty: ClassVar[str] = "None."
    """The text that the page shows if there are no rows."""

    template = "read_only_admin/rows.html"
    formset = NewestRows
    extra = 0
    max_num = 0
    can_delete = False
