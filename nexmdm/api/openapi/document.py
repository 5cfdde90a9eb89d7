"""The OpenAPI document. It is the document of Ninja, with the refusals and the headers of each operation.

The refusals of an operation follow from the error table, the operation's credentials, its path and its body. A refusal
of only a few operations is in `_BY_OPERATION`, by operation id.
"""

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import orjson
from ninja import NinjaAPI
from ninja.openapi.schema import OpenAPISchema
from ninja.operation import Operation

from commands import issuing, reports
from commands.schemas import NewCommand
from devices import audience, credentials, enrollment
from devices.identity import aliases
from nexmdm.api import health
from nexmdm.api.openapi import components, examples
from nexmdm.api.openapi.components import Json
from nexmdm.auth import signature_verification, signed_write
from nexmdm.auth.rate_limits import RateLimited
from nexmdm.common import problems
from nexmdm.common.domain_error import DomainError
from nexmdm.common.problems import Problem
from nexmdm.common.tolerance.repair import DECIDES, INFORMS
from nexmdm.events import cursor

ErrorTable = Mapping[type[DomainError], tuple[int, str, dict[str, str]]]


class Refusal(NamedTuple):
    """One possible error answer of an operation.

    `detail` is an example of the `detail` in the answer.
    """

    status: int
    code: str
    detail: str


def _general(status: int, detail: str) -> Refusal:
    return Refusal(status, problems.GENERAL[status], detail)


def _like(problem: Problem) -> Refusal:
    return Refusal(problem.status, problem.code, problem.detail)


_ANYWHERE: Final = (
    Refusal(400, "invalid_host", "The host name of this request is not in ALLOWED_HOSTS."),
    _like(problems.TARGET_IS_NO_PATH),
    _general(400, "The request or its chunked body is not valid HTTP/1.1."),
    _general(408, "The body did not arrive in time."),
    _general(413, "The body is larger than this path allows."),
    _general(
        415, "The body is not sent as Content-Type: application/json, or the body is compressed (Content-Encoding)."
    ),
    _general(
        422, "The request is not valid, or the query has unknown parameters. `errors` names each problem and its place."
    ),
    _general(431, "The headers are too large."),
    _like(problems.INTERNAL),
    _general(503, "Too many connections are open, or too many requests are waiting. Try again in a few seconds."),
)
_NOT_JSON: Final = Refusal(400, "invalid_json", "The body is not JSON in UTF-8.")
_NOT_FOUND: Final = _general(404, "There is nothing at this path, or nothing has this id.")
_RATE_LIMITED: Final = _general(429, RateLimited.detail)
_DATABASE_UNAVAILABLE: Final = _like(problems.DATABASE_UNAVAILABLE)
_WITH_A_CREDENTIAL: Final = (
    _RATE_LIMITED,
    _DATABASE_UNAVAILABLE,
)

_BY_SCHEME: Final[Mapping[str, tuple[type[DomainError], ...]]] = {
    "DeviceBearer": (credentials.InvalidToken, credentials.DeviceRevoked),
    "EnrollmentBearer": (
        enrollment.InvalidEnrollmentToken,
        enrollment.EnrollmentTokenExpired,
        enrollment.EnrollmentTokenExhausted,
        enrollment.EnrollmentTokenRevoked,
    ),
    "SignedRequest": (signature_verification.InvalidSignature,),
}
_SIGNED_WRITE: Final = (
    signature_verification.IdempotencyKeyRequired,
    signed_write.IdempotencyInFlight,
    signed_write.IdempotencyKeyReused,
)
_BY_OPERATION: Final[Mapping[str, tuple[type[DomainError], ...]]] = {
    "register": (credentials.DeviceRevoked, enrollment.HardwareKnown, aliases.AliasTaken),
    "actionResult": (reports.UnknownRequest,),
    "issueCommand": (
        audience.UnknownDevices,
        audience.EmptyAudience,
        issuing.AudienceChanged,
        issuing.PushPayloadTooLarge,
    ),
    "changeDevice": (enrollment.DeviceRetired, aliases.AliasTaken),
    "reinstateDevice": (enrollment.DeviceRetired,),
    "listEvents": (cursor.CursorExpired,),
    "changeTag": (audience.UnknownDevices,),
    "replayWebhook": (cursor.CursorExpired,),
}
_METRICS: Final = (_NOT_FOUND, _RATE_LIMITED, _DATABASE_UNAVAILABLE)
_NO_METRICS_TOKEN: Final = Refusal(401, "invalid_token", "Send METRICS_TOKEN as the bearer token.")
_NOT_THE_EXAMPLE: Final = (_NO_METRICS_TOKEN, _like(problems.TARGET_IS_NO_PATH))
# The error table has no row for this error, because its answer needs a handler that lists devices.
_NOT_IN_THE_TABLE: Final[ErrorTable] = {audience.UnknownDevices: (422, "unknown_devices", {})}


class DescribedAPI(NinjaAPI):
    """A NinjaAPI whose OpenAPI document contains the possible error answers.

    `errors` is the error table: the status, the code and the headers of each domain error.
    """

    def __init__(self, *, errors: ErrorTable, **options: Any) -> None:
        super().__init__(**options)
        self._errors = errors
        self._document: OpenAPISchema | None = None

    def get_openapi_operation_id(self, operation: Operation) -> str:
        """Return the name of the view function in camel case. Example: `issue_command` becomes `issueCommand`."""
        first, *others = operation.view_func.__name__.split("_")
        return first + "".join(map(str.capitalize, others))

    def get_openapi_schema(self, *, path_prefix: str | None = None, path_params: Json | None = None) -> OpenAPISchema:
        """Return the OpenAPI document.

        The first call creates the document, which takes 35 ms. Later calls return this document again.
        """
        if self._document is None:
            document = super().get_openapi_schema(path_prefix=path_prefix, path_params=path_params)
            _Completion(document, self._errors).apply()
            self._document = document
        return self._document


class _Completion:
    """Adds the refusals, headers and examples to one document, in place."""

    def __init__(self, document: Json, errors: ErrorTable) -> None:
        self._document = document
        self._errors = {**errors, **_NOT_IN_THE_TABLE}
        self._answers: Json = {}

    def apply(self) -> None:
        paths = self._document["paths"] | {"/metrics": {"get": _metrics()}}
        self._document["paths"] = {
            path: {method: self._operation(method, path, found) for method, found in methods.items()}
            for path, methods in paths.items()
        }
        shared = self._document["components"]
        schemas = shared["schemas"] | components.action_params() | {"ProblemDetails": components.PROBLEM}
        schemas[NewCommand.__name__] = components.new_command(schemas[NewCommand.__name__])
        schemes = shared["securitySchemes"]
        shared |= {
            "schemas": schemas,
            "responses": self._answers,
            "headers": components.HEADERS,
            "parameters": {
                name: {"name": name, "in": "header", "required": True, **rest}
                for name, rest in components.PARAMETERS.items()
            },
            "securitySchemes": {name: schemes.get(name, {}) | more for name, more in components.SECURITY.items()},
        }
        self._document["tags"] = list(components.TAGS)

    def _operation(self, method: str, path: str, found: Json) -> Json:
        summary, rest = _split(found["description"])
        described = {key: value for key, value in found.items() if key != "description"}
        more = " ".join(filter(None, [rest, self._causes_of_422(found)]))
        described |= {"summary": summary} | ({"description": more} if more else {})
        if method == "head":
            described["operationId"] = f"head{found['operationId'].capitalize()}"
        described["parameters"] = [_with_example(parameter) for parameter in found["parameters"]]
        if _is_signed(found):
            described["parameters"] = _signing_parameters(method) + described["parameters"]
        described["responses"] = self._responses(method, path, found)
        _add_examples(described)
        return described

    def _causes_of_422(self, found: Json) -> str:
        """Return a sentence with the fields of a phone's body that can cause a 422.

        Return an empty string for other bodies.
        """
        schema = found.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
        body = self._document["components"]["schemas"].get(schema.get("$ref", "").rpartition("/")[2], {})
        described = {name: one.get("description", "") for name, one in body.get("properties", {}).items()}
        if not any(text.startswith(INFORMS.description) for text in described.values()):
            return ""
        deciding = [f"`{name}`" for name, text in described.items() if text.startswith(DECIDES.description)]
        return f"Fields of the body that can be a cause of 422: {', '.join(deciding) or 'none'}."

    def _responses(self, method: str, path: str, found: Json) -> Json:
        by_status: dict[int, list[Refusal]] = {}
        for refusal in dict.fromkeys(self._refusals(method, path, found)):
            by_status.setdefault(refusal.status, []).append(refusal)
        refused = {str(status): self._refused(status, refusals) for status, refusals in by_status.items()}
        replayable = ["Idempotent-Replayed"] if _is_signed_write(method, found) else []
        own = {
            str(status): answer | {"headers": _headers(status, *(replayable if status == 200 else []))}
            for status, answer in found["responses"].items()
        }
        for status, answer in own.items():
            if int(status) in by_status:
                answer["content"] = answer["content"] | _problem_answer(by_status[int(status)])["content"]
        return dict(sorted((refused | own).items()))

    def _refusals(self, method: str, path: str, found: Json) -> Iterable[Refusal]:
        """Yield every possible refusal of an operation. Some refusals are yielded more than once."""
        yield from _ANYWHERE
        if "requestBody" in found:
            yield _NOT_JSON
        for scheme in _schemes(found):
            yield from self._of(_BY_SCHEME.get(scheme, ()))
        if _is_signed_write(method, found):
            yield from self._of(_SIGNED_WRITE)
        yield from self._of(_BY_OPERATION.get(found["operationId"], ()))
        if "{" in path:
            yield _NOT_FOUND
        if path == "/metrics":
            yield from _METRICS
        elif "security" in found:
            yield from _WITH_A_CREDENTIAL

    def _of(self, errors: Iterable[type[DomainError]]) -> Iterable[Refusal]:
        for error in errors:
            status, code, _ = self._errors[error]
            yield Refusal(status, code, error.detail)

    def _refused(self, status: int, refusals: list[Refusal]) -> Json:
        """Return a reference to an answer with `refusals`, and add this answer to the document.

        Operations with equal refusals share one answer.
        """
        name = "Or".join("".join(map(str.capitalize, refusal.code.split("_"))) for refusal in refusals)
        self._answers[name] = _problem_answer(refusals) | {"headers": _headers(status)}
        return {"$ref": f"#/components/responses/{name}"}


def _with_example(parameter: Json) -> Json:
    example = examples.PATH.get(parameter["name"]) if parameter["in"] == "path" else None
    return parameter | ({"example": example} if example else {})


def _add_examples(described: Json) -> None:
    places = {"body": described.get("requestBody", {}), "answer": described["responses"]["200"]}
    for part, place in places.items():
        if shown := examples.shown(described["operationId"], part):
            place["content"]["application/json"]["examples"] = shown


def _metrics() -> Json:
    return {
        "operationId": "readMetrics",
        "description": health.read_metrics.__doc__ or "",
        "tags": ["operations"],
        "parameters": [],
        "responses": {
            200: {"description": "OK", "content": {"text/plain": {"schema": {"type": "string"}}}},
            401: _problem_answer([_NO_METRICS_TOKEN]),
        },
        "security": [{"MetricsBearer": []}, {}],
    }


def _split(text: str) -> tuple[str, str]:
    """Return the first sentence of a docstring without its full stop, and the rest of the docstring."""
    first, *rest = re.split(r"\.(?:\s+|$)", " ".join(text.split()), maxsplit=1)
    return first, "".join(rest)


def _schemes(found: Json) -> set[str]:
    return {name for alternative in found.get("security", []) for name in alternative}


def _is_signed(found: Json) -> bool:
    return "SignedRequest" in _schemes(found)


def _is_signed_write(method: str, found: Json) -> bool:
    return _is_signed(found) and method != "get"


def _signing_parameters(method: str) -> list[Json]:
    names = [name for name in components.PARAMETERS if method != "get" or name != "Idempotency-Key"]
    return [{"$ref": f"#/components/parameters/{name}"} for name in names]


def _headers(status: int, *more: str) -> Json:
    demanded = {401: ["WWW-Authenticate"], 429: ["Retry-After"], 503: ["Retry-After"]}.get(status, [])
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ["X-Correlation-ID", *demanded, *more]}


def _problem_answer(refusals: list[Refusal]) -> Json:
    content = {
        "schema": {"$ref": "#/components/schemas/ProblemDetails"},
        "examples": {refusal.code: {"value": _example(refusal)} for refusal in refusals},
    }
    title = HTTPStatus(refusals[0].status).phrase
    return {
        "description": "\n".join([f"{title}:", "", *map(_line, refusals)]),
        "content": {problems.MEDIA_TYPE: content},
    }


def _line(refusal: Refusal) -> str:
    return f"- `{refusal.code}`: {refusal.detail}"


def _example(refusal: Refusal) -> Any:
    """Return recorded problem details with the code and the status of the refusal.

    If no problem details are recorded, return an example with the `detail` of the refusal.
    """
    problem = orjson.loads(Problem(refusal.status, refusal.code, refusal.detail).body())
    real = examples.PROBLEMS.get(refusal.code, problem)
    return problem if refusal in _NOT_THE_EXAMPLE or real["status"] != refusal.status else real
