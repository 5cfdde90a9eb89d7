"""Tolerance: a phone's request is refused only for fields that decide; fields that inform are repaired or dropped.

Each field of a device body is annotated with its role. The repair of a value follows from its field's type. A body
that is valid as sent is not examined again.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, partial
from math import floor, inf
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Generic, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import (
    AfterValidator,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import CoreSchema, core_schema
from typing_extensions import is_typeddict

from nexmdm.common.types import DeviceBody, Storable, check_json, shown_name

B = TypeVar("B", bound=DeviceBody)


@dataclass(frozen=True, slots=True)
class Role:
    """Annotates a field of a device body; the OpenAPI document shows its description."""

    decides: bool
    repairs: bool
    description: str

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        described = handler(schema)
        return described | {"description": " ".join(filter(None, (self.description, described.get("description"))))}


DECIDES: Final = Role(decides=True, repairs=False, description="Decides: a value that is not valid causes 422.")
INFORMS: Final = Role(
    decides=False,
    repairs=True,
    description="Informs: a value that is not valid is repaired or dropped. Such a value never causes 422.",
)
INFORMS_EXACTLY: Final = Role(
    decides=False,
    repairs=False,
    description="Informs: a value that is not valid is dropped. A value is never changed, and never causes 422.",
)


class Note(NamedTuple):
    """The repair or drop of a field that informs. `field` is its name for metrics, with no key from a phone."""

    loc: tuple[str, ...]
    msg: str
    field: str


class Reading(Generic[B]):
    """A phone's body after the repair, and the notes on the repair; a mere change of spelling has no note.

    An operation whose body is annotated with Reading[Model] reads it tolerantly; the OpenAPI document shows the model.
    """

    # Neither a dataclass nor a named tuple: pydantic would validate those itself, as objects with these two members.
    def __init__(self, fields: B, notes: Sequence[Note] = ()) -> None:
        self.fields = fields
        self.notes = notes

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        (model,) = get_args(source)
        informing(model)  # A field without a role stops the start here.
        return core_schema.no_info_wrap_validator_function(partial(_read, model), handler(model))


def _read(model: type[B], given: object, validate: Callable[[object], B]) -> Reading[B]:
    try:
        return Reading(validate(given))
    except ValidationError:
        return repair(model, given, validate)


def repair(model: type[B], given: object, validate: Callable[[object], B] | None = None) -> Reading[B]:
    """Repair parsed JSON that is not valid as sent; `validate` replaces the model's own validation.

    Raises pydantic's ValidationError for a field that decides, and for a body that is not an object.
    """
    validate = validate or model.model_validate
    if not isinstance(given, dict):
        return Reading(validate(given))
    place, fields = _Place(("body",), "", []), informing(model)
    deciding = {name: given[name] for name in model.model_fields if name in given and name not in fields}
    return Reading(validate(deciding | _fit(fields, given, place)), place.notes)


@dataclass(frozen=True, slots=True)
class _Place:
    """The place of a value in a body, and the notes on that body."""

    loc: tuple[str, ...]
    field: str
    notes: list[Note]

    def within(self, name: str, field: str) -> "_Place":
        return _Place((*self.loc, name), f"{self.field}.{field}" if self.field else field, self.notes)

    def note(self, msg: str) -> None:
        """Add a note; a second one on the same place is merged into the first."""
        if self.notes and self.notes[-1].loc is self.loc:
            msg = f"{self.notes.pop().msg}; {msg}"
        self.notes.append(Note(self.loc, msg, self.field))


class Unrepairable(ValueError):
    """The value cannot be repaired."""


Repair = Callable[[Any, _Place], Any]
"""Returns a value that may be valid, with a note unless only its spelling was changed. Raises ValueError."""


class Informing(NamedTuple):
    """A field that informs. `adapter` validates its values; `repair` is called with a value that is not valid."""

    adapter: TypeAdapter[Any]
    repair: Repair


@cache
def informing(schema: type) -> Mapping[str, Informing]:
    """Return the fields that inform, of a device body or of an object in it. TypeError for a field without a role."""
    hints = get_type_hints(schema, include_extras=True)
    names = hints if is_typeddict(schema) else schema.model_fields  # type: ignore[attr-defined]
    declared = {name: _plain(hints[name]) for name in names}
    roles = {name: _role(f"{schema.__name__}.{name}", annotations) for name, (_, annotations) in declared.items()}
    return {
        name: Informing(TypeAdapter(hints[name]), _repair_for(*declared[name]) if role.repairs else _as_it_is)
        for name, role in roles.items()
        if not role.decides
    }


def _plain(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return the type within Annotated and `| None`, and all its annotations."""
    if get_origin(hint) is Annotated:
        inner, *annotations = get_args(hint)
        plain, more = _plain(inner)
        return plain, (*more, *annotations)
    if get_origin(hint) in (Union, UnionType):
        (inner,) = (one for one in get_args(hint) if one is not NoneType)
        return _plain(inner)
    return hint, ()


def _role(name: str, annotations: Sequence[Any]) -> Role:
    for annotation in annotations:
        if isinstance(annotation, Role):
            return annotation
    raise TypeError(f"{name} has no role: annotate it with DECIDES, INFORMS or INFORMS_EXACTLY.")


def _repair_for(plain: Any, annotations: Sequence[Any]) -> Repair:
    if plain is int:
        return _whole_number
    if plain is str:
        return partial(_text, _max_length(annotations))
    for annotation in annotations:
        if isinstance(annotation, Storable):
            return partial(_object, annotation, informing(plain) if is_typeddict(plain) else None)
    return _as_it_is


def _max_length(annotations: Sequence[Any]) -> int:
    """Return the limit that StringConstraints or Field give a text."""
    for annotation in annotations:
        for constraint in (annotation, *getattr(annotation, "metadata", ())):
            if isinstance(limit := getattr(constraint, "max_length", None), int):
                return limit
    raise TypeError("A text field that only informs must have a max_length: longer values are cut there.")


def _fit(fields: Mapping[str, Informing], given: Mapping[str, Any], place: _Place) -> dict[str, Any]:
    """Return the valid and the repaired values of these fields, without values that cannot be repaired."""
    fitted: dict[str, Any] = {}
    for name, field in fields.items():
        if name in given:
            _put(fitted, name, field, given[name], place.within(name, name))
    return fitted


def _put(fitted: dict[str, Any], name: str, field: Informing, value: Any, place: _Place) -> None:
    """Put the value in its place, or note why it is dropped. A null that is not allowed counts as not sent."""
    noted = len(place.notes)
    try:
        fitted[name] = _fitting(field, value, place)
    except ValueError as error:
        within = place.notes[noted:]
        del place.notes[noted:]
        if value is not None:
            place.note(_reason_within(error, within) or f"{_reason(error)}; dropped")


def _fitting(field: Informing, value: Any, place: _Place) -> Any:
    try:
        field.adapter.validate_python(value)
    except ValidationError:
        value = field.repair(value, place)
        field.adapter.validate_python(value)
    return value


def _reason(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return first["msg"].removeprefix("Value error, ")


def _reason_within(error: ValueError, notes: Sequence[Note]) -> str:
    """Return why an object lacks a required member, with the member's name; empty if the error has another reason."""
    if not isinstance(error, ValidationError):
        return ""
    missing = [str(one["loc"][-1]) for one in error.errors(include_url=False) if one["type"] == "missing"]
    dropped = {note.loc[-1]: note.msg.removesuffix("; dropped") for note in notes}
    return f"{missing[0]} {dropped.get(missing[0], 'is required')}; the whole object is dropped" if missing else ""


def _as_it_is(value: Any, place: _Place) -> Any:  # noqa: ARG001  (it is a Repair)
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) != inf


def _whole_number(value: Any, place: _Place) -> int:
    """Read 83.9 and "83" as 83."""
    if isinstance(value, str) and _DECIMAL.fullmatch(value.strip()):
        value = Decimal(value.strip())
    elif not _is_number(value):
        raise Unrepairable("must be a whole number")
    whole: int = floor(value)
    if whole != value:
        place.note("rounded down to a whole number")
    return whole


def _text(limit: int, value: Any, place: _Place) -> str:
    """Read a number as its text; cut a text that is too long."""
    if _is_number(value):
        value = str(value)
    if not isinstance(value, str):
        raise Unrepairable("must be a text")
    text: str = _storable_text(value, place)
    if len(text) > limit:
        place.note(f"cut to {limit} characters")
    return text[:limit]


def _object(storable: Storable, fields: Mapping[str, Informing] | None, value: Any, place: _Place) -> dict[str, Any]:
    """Repair the members of an object: those that its schema declares, and any others as free JSON."""
    if not isinstance(value, dict):
        raise Unrepairable("must be an object")
    storable.check_shape(value)
    if fields is None:
        repaired: dict[str, Any] = _storable_text(value, place)
        return repaired
    fitted = _fit(fields, value, place)
    for key in [key for key in value if key not in fields]:
        if len(place.notes) >= MOST_NOTES:
            raise Unrepairable(f"is not repaired, because {MOST_NOTES} or more values of the body do not fit")
        here = place.within(shown_name(key), OTHER_KEYS)
        _put(fitted, _storable_text(key, here), _OTHER, value[key], here)
    return fitted


def _storable_text(value: Any, place: _Place) -> Any:
    """Return JSON with U+FFFD for each NUL and lone surrogate in it."""
    replaced = _replaced(value)
    if replaced != value:
        place.note("NUL and lone surrogates replaced by U+FFFD")
    return replaced


def _replaced(value: Any) -> Any:
    if isinstance(value, str):
        return _NOT_STORABLE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_replaced(inner) for inner in value]
    if isinstance(value, dict):
        return {_replaced(key): _replaced(inner) for key, inner in value.items()}
    return value


def _checked(value: Any) -> Any:
    check_json(value)
    return value


MOST_NOTES: Final = 32
"""From this number of notes on a body, an object with further keys is dropped as a whole.

Each repair costs 15 µs, and a client without a valid credential can cause repairs.
"""

OTHER_KEYS: Final = "*"
"""The name under which the metrics count keys that no schema declares."""

_OTHER: Final = Informing(TypeAdapter(Annotated[Any, AfterValidator(_checked)]), _storable_text)
_DECIMAL: Final = re.compile(r"-?[0-9]{1,19}(\.[0-9]{1,19})?")
_NOT_STORABLE: Final = re.compile("[\0\ud800-\udfff]")
