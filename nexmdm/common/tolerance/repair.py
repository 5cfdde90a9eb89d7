"""The repair of bodies of phones. Each field of a device body is annotated with its role. A field either decides what
the server does, or only informs.

If a field that decides has an invalid value, the request is refused. If a field that only informs has an invalid value,
this value is repaired or dropped. The type of the field determines the repair. A valid body is not changed.
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
    """The role of a field of a device body. The OpenAPI document contains its description.

    If `decides` is true, the server refuses a request with an invalid value. If `decides` is false, an invalid value is
    repaired or dropped. If `repairs` is false, an invalid value is always dropped.
    """

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
    """A note on a field that was repaired or dropped.

    `loc` is the path of the value in the body. `field` is the name for metrics, which contains no key that a phone
    invented.
    """

    loc: tuple[str, ...]
    msg: str
    field: str


class Reading(Generic[B]):
    """The body of a phone after the repair, and the notes on the repair. If only the spelling of a value was changed,
    there is no note.

    An operation whose body has the type Reading[Model] accepts repaired bodies. The OpenAPI document shows Model.
    """

    # Do not use a dataclass or a named tuple: pydantic would validate the body as an object with these two members.
    def __init__(self, fields: B, notes: Sequence[Note] = ()) -> None:
        self.fields = fields
        self.notes = notes

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        (model,) = get_args(source)
        informing(model)  # This stops the start if a field has no role.
        return core_schema.no_info_wrap_validator_function(partial(_read, model), handler(model))


def _read(model: type[B], given: object, validate: Callable[[object], B]) -> Reading[B]:
    try:
        return Reading(validate(given))
    except ValidationError:
        return repair(model, given, validate)


def repair(model: type[B], given: object, validate: Callable[[object], B] | None = None) -> Reading[B]:
    """Repair a body that is not valid. `given` is parsed JSON. `validate` replaces the validation of the model.

    Raises pydantic's ValidationError for an invalid field that decides, and for a body that is not an object.
    """
    validate = validate or model.model_validate
    if not isinstance(given, dict):
        return Reading(validate(given))
    place, fields = _Place(("body",), "", []), informing(model)
    deciding = {name: given[name] for name in model.model_fields if name in given and name not in fields}
    return Reading(validate(deciding | _fit(fields, given, place)), place.notes)


@dataclass(frozen=True, slots=True)
class _Place:
    """The path of a value in a body, its name for metrics, and all notes on the body."""

    loc: tuple[str, ...]
    field: str
    notes: list[Note]

    def within(self, name: str, field: str) -> "_Place":
        return _Place((*self.loc, name), f"{self.field}.{field}" if self.field else field, self.notes)

    def note(self, msg: str) -> None:
        """Add a note. A second note on the same value is merged with the first note."""
        if self.notes and self.notes[-1].loc is self.loc:
            msg = f"{self.notes.pop().msg}; {msg}"
        self.notes.append(Note(self.loc, msg, self.field))


class Unrepairable(ValueError):
    """The value cannot be repaired."""


Repair = Callable[[Any, _Place], Any]
"""A function that returns a value which may be valid. If the function changes more than the spelling, it adds a note.
Raises ValueError.
"""


class Informing(NamedTuple):
    """A field that informs. `adapter` validates its values. `repair` is called for a value that is not valid."""

    adapter: TypeAdapter[Any]
    repair: Repair


@cache
def informing(schema: type) -> Mapping[str, Informing]:
    """Return the fields of `schema` whose invalid values are repaired or dropped, not refused. `schema` is the type of
    a device body, or of an object in such a body.

    Raises TypeError if a field is not annotated with a Role.
    """
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
    raise TypeError(f"The field {name} has no role. Annotate it with DECIDES, INFORMS or INFORMS_EXACTLY (repair.py).")


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
    for annotation in annotations:
        for constraint in (annotation, *getattr(annotation, "metadata", ())):
            if isinstance(limit := getattr(constraint, "max_length", None), int):
                return limit
    raise TypeError("A text field with the role INFORMS must have a max_length. Longer values are cut to this length.")


def _fit(fields: Mapping[str, Informing], given: Mapping[str, Any], place: _Place) -> dict[str, Any]:
    fitted: dict[str, Any] = {}
    for name, field in fields.items():
        if name in given:
            _put(fitted, name, field, given[name], place.within(name, name))
    return fitted


def _put(fitted: dict[str, Any], name: str, field: Informing, value: Any, place: _Place) -> None:
    noted = len(place.notes)
    try:
        fitted[name] = _fitting(field, value, place)
    except ValueError as error:
        within = place.notes[noted:]
        del place.notes[noted:]
        # A null that is not allowed counts as not sent.
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
    if isinstance(value, str) and _DECIMAL.fullmatch(value.strip()):
        value = Decimal(value.strip())
    elif not _is_number(value):
        raise Unrepairable("must be a whole number")
    whole: int = floor(value)
    if whole != value:
        place.note("rounded down to a whole number")
    return whole


def _text(limit: int, value: Any, place: _Place) -> str:
    if _is_number(value):
        value = str(value)
    if not isinstance(value, str):
        raise Unrepairable("must be a text")
    text: str = _storable_text(value, place)
    if len(text) > limit:
        place.note(f"cut to {limit} characters")
    return text[:limit]


def _object(storable: Storable, fields: Mapping[str, Informing] | None, value: Any, place: _Place) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Unrepairable("must be an object")
    storable.check_shape(value)
    if fields is None:
        repaired: dict[str, Any] = _storable_text(value, place)
        return repaired
    fitted = _fit(fields, value, place)
    for key in [key for key in value if key not in fields]:
        if len(place.notes) >= MOST_NOTES:
            raise Unrepairable(f"the server repairs at most {MOST_NOTES} values of a body")
        here = place.within(shown_name(key), OTHER_KEYS)
        _put(fitted, _storable_text(key, here), _OTHER, value[key], here)
    return fitted


def _storable_text(value: Any, place: _Place) -> Any:
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
"""If a body already has this number of notes, an object with undeclared keys is dropped completely.

Each repair takes 15 µs, and a client without a valid credential can cause repairs.
"""

OTHER_KEYS: Final = "*"
"""The name in the metrics for all keys that no schema declares."""

_OTHER: Final = Informing(TypeAdapter(Annotated[Any, AfterValidator(_checked)]), _storable_text)
_DECIMAL: Final = re.compile(r"-?[0-9]{1,19}(\.[0-9]{1,19})?")
_NOT_STORABLE: Final = re.compile("[\0\ud800-\udfff]")
