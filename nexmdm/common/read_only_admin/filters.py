"""The filters of the admin site's lists: known choices, spans of time, exact texts. They count no rows."""

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
"""The longest time between a row's time and its key: the row's time is the beginning of its transaction, and the key is
created later.
"""


def _chosen(by: admin.SimpleListFilter, choices: Mapping[str, T]) -> T | None:
    """Return the value of a filter's choice; None if no choice is given.

    An unknown choice is an error, because the unfiltered list would look filtered.
    """
    choice = by.value()
    if not choice:
        return None
    if choice not in choices:
        raise IncorrectLookupParameters
    return choices[choice]


class ChoiceFilter(admin.SimpleListFilter):
    """A filter with constant choices, which needs no query to show them. An unknown choice is refused."""

    def conditions(self) -> dict[str, Q]:
        """Return the condition of each choice."""
        raise NotImplementedError

    def lookups(self, request: HttpRequest, model_admin: ModelAdmin) -> list[tuple[str, str]]:  # noqa: ARG002
        """Return the choices. Each is also its label."""
        return [(choice, choice) for choice in self.conditions()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:  # noqa: ARG002
        """Keep the rows of the choice. Raises IncorrectLookupParameters for an unknown one."""
        condition = _chosen(self, self.conditions())
        return queryset if condition is None else queryset.filter(condition)


class SpanFilter(admin.SimpleListFilter):
    """A filter with spans of time, each counted from now into the past."""

    spans: ClassVar[Mapping[str, timedelta]]

    def lookups(self, request: HttpRequest, model_admin: ModelAdmin) -> list[tuple[str, str]]:  # noqa: ARG002
        """Return the spans. Each is also its label."""
        return [(name, name) for name in self.spans]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:  # noqa: ARG002
        """Return narrowed(), or all rows if no span is chosen. Raises IncorrectLookupParameters for an unknown span."""
        span = _chosen(self, self.spans)
        return queryset if span is None else self.narrowed(queryset, database.now() - span)

    def narrowed(self, rows: QuerySet[Any], moment: datetime) -> QuerySet[Any]:
        """Return the rows that match the chosen span; each subclass compares its own time with `moment`.

        `moment` is the beginning of the span: now minus its length.
        """
        raise NotImplementedError


class AgeFilter(SpanFilter):
    """A filter by the largest age."""

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
        """Return the rows that are not older than the moment."""
        return in_date_range(rows, self.column, moment, None)


class FormFilter(admin.ListFilter):
    """A filter by the fields of a form, whose names are the `parameters`; an empty field does not filter."""

    parameters: ClassVar[tuple[str, ...]]

    def __init__(
        self, request: HttpRequest, params: dict[str, list[str]], model: type[Model], model_admin: ModelAdmin
    ) -> None:
        super().__init__(request, params, model, model_admin)
        self.used_parameters = {name: params.pop(name)[-1] for name in self.parameters if name in params}

    def expected_parameters(self) -> list[str | None]:
        """Return the query parameters."""
        return list(self.parameters)

    def has_output(self) -> bool:
        """Return True: the filter is always shown."""
        return True

    def choices(self, changelist: ChangeList) -> Iterator[Any]:
        """Return the other parameters of the query, which the form must send too."""
        for name, values in changelist.filter_params.items():
            if name not in self.parameters:
                yield from ({"name": name, "value": value} for value in values)


class ExactTextFilter(FormFilter):
    """A filter by exact texts, one for each parameter; `columns` has the column of each.

    A text that a column cannot store does not filter.
    """

    template = "read_only_admin/exact_text.html"
    columns: ClassVar[Mapping[str, str]]

    @property
    def fields(self) -> list[dict[str, str]]:
        """The fields of the form: name, label and value of each."""
        given = {name: str(self.used_parameters.get(name, "")) for name in self.parameters}
        return [{"name": name, "label": name.replace("_", " "), "value": text} for name, text in given.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:  # noqa: ARG002
        """Keep the rows that have these texts."""
        texts = {self.columns[name]: str(text) for name, text in self.used_parameters.items() if text}
        return queryset.filter(**{column: self.value_of(text) for column, text in texts.items() if "\0" not in text})

    def value_of(self, text: str) -> Any:
        """Return the value with which a column is compared."""
        return text


class DateRangeFilter(FormFilter):
    """A filter by two minutes in UTC. Each is optional. A text that is not a time does not filter."""

    title = "time (UTC)"
    template = "read_only_admin/date_range.html"
    parameters = ("since", "until")
    column: ClassVar[str]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:  # noqa: ARG002
        """Keep the rows from the first minute on, and before the second."""
        since, until = (_moment(self.used_parameters.get(name, "")) for name in self.parameters)
        return in_date_range(queryset, self.column, since, until)


def _moment(text: Any) -> datetime | None:
    """Return the time in a form's field, in UTC; None if it is empty or not a time."""
    try:
        moment = datetime.fromisoformat(text)
        # PostgreSQL refuses offsets of 16 hours and more.
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
    return moment if 1970 <= moment.year < 9999 else None


def in_date_range(rows: QuerySet[Any], column: str, since: datetime | None, until: datetime | None) -> QuerySet[Any]:
    """Keep the rows of a span of time.

    Keys that are numbers grow with time, so the span is a range of keys. A list in descending order of the key reads
    only this range, and times need no index.
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
    """Return the first key whose row is of this moment or later, by about twenty look-ups in the key's index."""
    rows: QuerySet[Any] = model._default_manager.order_by("pk")  # noqa: SLF001

    def time_at(key: int) -> datetime:
        found: datetime = rows.filter(pk__gte=key).values_list(column, flat=True)[:1].get()
        return found

    newest = rows.values_list("pk", flat=True).last()
    return 0 if newest is None else bisect_left(range(newest + 1), moment, key=time_at)


def all_of(rows: QuerySet[Any]) -> QuerySet[Any]:
    """Return the same keys from a separate subquery: PostgreSQL does not flatten a subquery with a LIMIT.

    Use it for a filter whose matches may all be old. Otherwise PostgreSQL's planner assumes that the matches are spread
    evenly. PostgreSQL would then read and join the list from its newest row until it has found a hundred matches, and
    may read the whole list.
    """
    return rows.order_by().values("pk")[:EVERY]
