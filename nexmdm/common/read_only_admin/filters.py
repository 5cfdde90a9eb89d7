"""The filters of the admin site's lists: choices, ages, exact texts and times. No filter counts rows."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.db.models import BigAutoField, Model, Q, QuerySet
from django.http import HttpRequest

from nexmdm.common import database

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Any]
else:
    ModelAdmin = admin.ModelAdmin

T = TypeVar("T")

EVERY: Final = 2**62

DISORDER: Final = timedelta(minutes=5)
"""The longest time between the time of a row and the creation of its key. The time of a row is the beginning of its
transaction, and the key is created later.
"""


def _chosen(by: admin.SimpleListFilter, choices: Mapping[str, T]) -> T | None:
    # An unknown choice must be an error: a list without a filter would look like a filtered list.
    choice = by.value()
    if not choice:
        return None
    if choice not in choices:
        raise IncorrectLookupParameters
    return choices[choice]


class ChoiceFilter(admin.SimpleListFilter):
    """A filter with fixed choices. To show them, no query is necessary."""

    def conditions(self) -> dict[str, Q]:
        """Return the condition for each choice."""
        raise NotImplementedError

    def lookups(self, request: HttpRequest, model_admin: ModelAdmin) -> list[tuple[str, str]]:  # noqa: ARG002
        """Return the choices. The label of a choice is the choice itself."""
        return [(choice, choice) for choice in self.conditions()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:  # noqa: ARG002
        """Keep the rows that match the choice. Raises IncorrectLookupParameters for an unknown choice."""
        condition = _chosen(self, self.conditions())
        return queryset if condition is None else queryset.filter(condition)


class SpanFilter(admin.SimpleListFilter):
    """A filter by a length of time before now. `spans` maps each label to its length of time."""

    spans: ClassVar[Mapping[str, timedelta]]

    def lookups(self, request: HttpRequest, model_admin: ModelAdmin) -> list[tuple[str, str]]:  # noqa: ARG002
        """Return the choices of the filter: the labels in `spans`."""
        return [(name, name) for name in self.spans]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:  # noqa: ARG002
        """Return narrowed() for the chosen length, or all rows if no length is chosen.

        Raises IncorrectLookupParameters for an unknown choice.
        """
        span = _chosen(self, self.spans)
        return queryset if span is None else self.narrowed(queryset, database.now() - span)

    def narrowed(self, rows: QuerySet[Any], moment: datetime) -> QuerySet[Any]:
        """Return the rows that match the chosen length of time. `moment` is now minus this length.

        Each subclass compares its own column with `moment`.
        """
        raise NotImplementedError


class AgeFilter(SpanFilter):
    """A filter by the largest age of a row. `column` is the name of the time column."""

    title = "not older than"
    parameter_name = "age"
    column: ClassVar[str]

    spans: ClassVar = {
        "1 hour": timedelta(hours=1),
        "1 day": timedelta(days=1),
        "7 days": timedelta(days=7),
        "30 days": timedelta(days=30),
    }

    def narrowed(self, rows: QuerySet[Any], moment: datetime) -> QuerySet[Any]:
        """Keep the rows that are not older than `moment`."""
        return in_date_range(rows, self.column, moment, None)


class FormFilter(admin.ListFilter):
    """A filter with a form. `parameters` are the names of its fields. An empty field has no effect."""

    parameters: ClassVar[tuple[str, ...]]

    def __init__(
        self, request: HttpRequest, params: dict[str, list[str]], model: type[Model], model_admin: ModelAdmin
    ) -> None:
        super().__init__(request, params, model, model_admin)
        self.used_parameters = {name: params.pop(name)[-1] for name in self.parameters if name in params}

    def expected_parameters(self) -> list[str | None]:
        """Return the query parameters of this filter."""
        return list(self.parameters)

    def has_output(self) -> bool:
        """Return True: the filter is always shown."""
        return True

    def choices(self, changelist: ChangeList) -> Iterator[Any]:
        """Return the query parameters that do not belong to this filter. The form must send these parameters too."""
        for name, values in changelist.filter_params.items():
            if name not in self.parameters:
                yield from ({"name": name, "value": value} for value in values)


class ExactTextFilter(FormFilter):
    """A filter by exact texts. `columns` has the column for each parameter.

    A text with a NUL has no effect, because no column can store it.
    """

    template = "read_only_admin/exact_text.html"
    columns: ClassVar[Mapping[str, str]]

    @property
    def fields(self) -> list[dict[str, str]]:
        """The name, label and value of each field of the form."""
        given = {name: str(self.used_parameters.get(name, "")) for name in self.parameters}
        return [{"name": name, "label": name.replace("_", " "), "value": text} for name, text in given.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:  # noqa: ARG002
        """Keep the rows whose columns are equal to the texts of the filter."""
        texts = {self.columns[name]: str(text) for name, text in self.used_parameters.items() if text}
        return queryset.filter(**{column: self.value_of(text) for column, text in texts.items() if "\0" not in text})

    def value_of(self, text: str) -> Any:
        """Return the value with which the column is compared."""
        return text


class DateRangeFilter(FormFilter):
    """A filter by two optional times in UTC. A text that is not a time has no effect."""

    title = "time (UTC)"
    template = "read_only_admin/date_range.html"
    parameters = ("since", "until")
    column: ClassVar[str]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:  # noqa: ARG002
        """Keep the rows from the first time on, and before the second time."""
        since, until = (_moment(self.used_parameters.get(name, "")) for name in self.parameters)
        return in_date_range(queryset, self.column, since, until)


def _moment(text: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
        # PostgreSQL refuses offsets of 16 hours and more.
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
    return moment if 1970 <= moment.year < 9999 else None


def in_date_range(rows: QuerySet[Any], column: str, since: datetime | None, until: datetime | None) -> QuerySet[Any]:
    """Keep the rows whose `column` is `since` or later, and before `until`. A limit that is None has no effect.

    Primary keys that are numbers grow with time. For such rows, the function also limits the primary key. The query
    then reads only a range of keys, and `column` needs no index.
    """
    numbered = isinstance(rows.model._meta.pk, BigAutoField)  # noqa: SLF001
    if since is not None:
        rows = rows.filter(**{f"{column}__gte": since})
        rows = rows.filter(pk__gte=_first_key(rows.model, column, since - DISORDER)) if numbered else rows
    if until is not None:
        rows = rows.filter(**{f"{column}__lt": until})
        rows = rows.filter(pk__lt=_first_key(rows.model, column, until + DISORDER)) if numbered else rows
    return rows


def _first_key(model: type[Model], column: str, moment: datetime) -> int:
    # A binary search: about twenty look-ups in the index of the key.
    rows: QuerySet[Any] = model._default_manager.order_by("pk")  # noqa: SLF001

    def time_at(key: int) -> datetime:
        found: datetime = rows.filter(pk__gte=key).values_list(column, flat=True)[:1].get()
        return found

    newest = rows.values_list("pk", flat=True).last()
    return 0 if newest is None else bisect_left(range(newest + 1), moment, key=time_at)


def all_of(rows: QuerySet[Any]) -> QuerySet[Any]:
    """Return a subquery with the keys of these rows. PostgreSQL does not merge this subquery with the outer query.

    Use this function for a filter whose matches may all be old. Without this function, PostgreSQL assumes that matches
    are spread evenly. PostgreSQL then begins at the newest row, and may read the whole list to find a page of matches.
    """
    return rows.order_by().values("pk")[:EVERY]
