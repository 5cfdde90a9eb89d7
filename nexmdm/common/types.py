"""The types of requests and answers. A type refuses values that PostgreSQL or the API does not allow."""

import json
import re
from codecs import BOM_UTF8
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final
from uuid import UUID

import orjson
from django.http import HttpResponse
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from nexmdm.common import identity

MAX_DEPTH: Final = 16
TOO_DEEP: Final = f"must not be nested deeper than {MAX_DEPTH} levels"
MAX_INTEGER: Final = 2**63 - 1
MIN_INTEGER: Final = -(2**63)
MAX_UNKNOWN: Final = 100
"""The largest number of unknown fields that an error lists. For a body with more unknown fields, the error lists no
fields.
"""
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


_SHOWN_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,31}")
"""The form of a name that an error may show. Such a name is shorter than every secret (nexmdm/config/environment.py).
"""


def shown_name(given: str) -> str:
    """Return `given` if an error may show it, and `…` if it may be a secret that was sent in the wrong place."""
    return given if _SHOWN_NAME.fullmatch(given) else "…"


class Body(BaseModel):
    """The body of a request of an admin. Unknown fields are refused, so that typing errors are noticed."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _no_heap_of_unknown_fields(cls, given: object) -> object:
        if isinstance(given, dict) and len(given) > len(cls.model_fields) + MAX_UNKNOWN:
            # A separate error for each unknown field would make the answer larger than the request, and slow to create.
            raise ValueError("has too many unknown fields")
        return given


class DeviceBody(BaseModel):
    """The body of a request of a phone. Unknown fields are ignored, so that a newer agent can use an older server.

    Each field is annotated with its role (nexmdm/common/tolerance/repair.py). The role decides whether an invalid value
    refuses the request.
    """

    model_config = ConfigDict(extra="ignore")


class ResponseSchema(BaseModel):
    """The body of an answer."""


def _text(value: str) -> str:
    if "\x00" in value:
        raise ValueError("must not contain the NUL character")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("must not contain lone surrogates")
    return value


_HARDWARE_ID: Final = (
    "A text that no other phone sends. Blanks at the beginning and the end are removed. These texts are refused in "
    f"upper and lower case, because many phones send them: {', '.join(sorted(identity.SHARED_HARDWARE_IDS))}, and "
    "texts that contain only zeros."
)
_ALIAS: Final = (
    "Stored in NFC, without blanks at the beginning and the end. Control and format characters are not allowed. "
    "Upper and lower case make no difference."
)
_NAMED_ALIAS: Final = "The alias of a device, in upper or lower case."


def _name_of_phone(description: str) -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": identity.LONGEST_NAME, "description": description}


STORABLE_TEXT: Final = AfterValidator(_text)
Text = Annotated[str, STORABLE_TEXT]
HardwareId = Annotated[
    str, STORABLE_TEXT, AfterValidator(identity.hardware_id), WithJsonSchema(_name_of_phone(_HARDWARE_ID))
]
Alias = Annotated[str, STORABLE_TEXT, AfterValidator(identity.alias), WithJsonSchema(_name_of_phone(_ALIAS))]
NamedAlias = Annotated[
    str, STORABLE_TEXT, AfterValidator(identity.named_alias), WithJsonSchema(_name_of_phone(_NAMED_ALIAS))
]
Detail = Annotated[str, StringConstraints(max_length=128), STORABLE_TEXT]
PushToken = Annotated[
    str,
    Field(
        min_length=1,
        max_length=4096,
        description="Blanks, control characters and placeholders such as BLACKLISTED are not allowed.",
    ),
    AfterValidator(identity.push_token),
]
Tag = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,64}$")]


def _identifier(value: object) -> UUID:
    if isinstance(value, UUID):
        return value
    if not isinstance(value, str) or not _UUID.fullmatch(value):
        raise ValueError("must be a UUID in lower case with hyphens")
    return UUID(value)


Identifier = Annotated[UUID, BeforeValidator(_identifier)]


_DATE_AND_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9:.]+([Zz]|[+-][0-9:]+)?")


def _moment(value: object) -> object:
    # pydantic would also accept "1767225600", and U+2212 as the minus sign of a time zone.
    if not isinstance(value, datetime) and not (isinstance(value, str) and _DATE_AND_TIME.fullmatch(value)):
        raise ValueError("must be a time such as 2026-01-01T00:00:00Z")
    return value


def _utc(value: datetime) -> datetime:
    if value.tzinfo is None or not 1970 <= value.year < 9999:
        raise ValueError("must be a time with a time zone, from the year 1970 on, such as 2026-01-01T00:00:00Z")
    return value.astimezone(UTC)


def rfc3339(value: datetime) -> str:
    """Return a time as the API writes it: in UTC with `Z`. Fractions of a second are written only if they are not 0."""
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


Time = Annotated[
    datetime,
    BeforeValidator(_moment),
    AfterValidator(_utc),
    PlainSerializer(rfc3339, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time", "example": "2026-01-01T00:00:00Z"}),
]


def _in_digits(value: object) -> object:
    # pydantic would also accept "5_0", "5.0", "1e1" and " 5".
    if isinstance(value, str) and not _DIGITS.fullmatch(value):
        raise ValueError("must be a whole number in digits, such as 50")
    return value


def _in_digits_with_a_point(value: object) -> object:
    if isinstance(value, str) and not _DIGITS_WITH_A_POINT.fullmatch(value):
        raise ValueError("must be a number in digits, such as 30 or 0.5")
    return value


_DIGITS: Final = re.compile(r"[0-9]{1,19}")
_DIGITS_WITH_A_POINT: Final = re.compile(r"[0-9]{1,19}(\.[0-9]{1,19})?")

QueryInteger = Annotated[int, BeforeValidator(_in_digits)]
"""A whole number in a query. It may contain only ASCII digits."""

QueryNumber = Annotated[float, BeforeValidator(_in_digits_with_a_point)]
"""A number in a query. It may contain only ASCII digits, and one point between digits."""


_LONG_NUMBER: Final = re.compile(rb"[0-9]{19}")


def parse_json(raw: bytes) -> Any:
    """Return the content of a JSON body. Raises ValueError if the body is not valid JSON.

    Also invalid: NaN, infinity, lone surrogates, invalid UTF-8 and extreme nesting. A byte order mark at the beginning
    is ignored. Integers of more than 64 bits are kept unchanged.
    """
    # orjson reads integers beyond 64 bit as floats. The standard library keeps them, so that an error can show them.
    raw = raw.removeprefix(BOM_UTF8)
    if _LONG_NUMBER.search(raw) is None:
        return orjson.loads(raw)
    orjson.loads(raw)
    try:
        return json.loads(raw)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def check_json(value: object, depth: int = 1) -> None:
    """Raise ValueError for JSON that is nested too deep, or that contains integers or texts which PostgreSQL cannot
    store.
    """
    if depth > MAX_DEPTH and isinstance(value, dict | list):
        raise ValueError(TOO_DEEP)
    if isinstance(value, dict):
        for key, inner in value.items():
            _text(key)
            check_json(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            check_json(inner, depth + 1)
    elif isinstance(value, str):
        _text(value)
    elif isinstance(value, int | float) and not MIN_INTEGER <= value <= MAX_INTEGER:
        # Refuse floats such as 1e300 too: jsonb stores it as an integer of 301 digits, which orjson cannot write.
        raise ValueError("must not contain a number below -2^63 or above 2^63 - 1")


def _free(value: dict[str, Any]) -> dict[str, Any]:
    check_json(value)
    return value


FreeObject = Annotated[dict[str, Any], AfterValidator(_free)]


@dataclass(frozen=True, slots=True)
class Storable:
    """Annotates a JSON object that is stored as sent. The object must pass check_json(), and must not be larger than
    `limit`.
    """

    limit: int
    """The limit in bytes of JSON text."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.check, handler(source))

    def check(self, value: object) -> object:
        """Return `value`. Raises ValueError for an object that cannot be stored."""
        if isinstance(value, dict):
            self._check_size(value)
            check_json(value)
        return value

    def check_shape(self, value: object) -> None:
        """Raise ValueError for JSON that is too large or nested too deep. Numbers and texts are not checked."""
        self._check_size(value)
        if _is_too_deep(value):
            raise ValueError(TOO_DEEP)

    def _check_size(self, value: object) -> None:
        if _json_size(value) > self.limit:
            raise ValueError(f"must not be larger than {self.limit} bytes of JSON")


def _is_too_deep(value: object, depth: int = 1) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is not None and (depth > MAX_DEPTH or any(_is_too_deep(one, depth + 1) for one in inner))


def _json_size(value: object) -> int:
    try:
        return len(orjson.dumps(value))
    except TypeError:  # integers beyond 64 bit, lone surrogates, or 255 levels
        pass
    try:
        return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass"))
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error


class EmptyBody(Body):
    """The body of a POST request that needs no content. The body may be missing, or `{}`."""


def respond(answer: BaseModel) -> HttpResponse:
    """Return an answer as JSON with status 200."""
    return HttpResponse(answer.model_dump_json(), content_type="application/json")
