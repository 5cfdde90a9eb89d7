"""The shared parts of the OpenAPI document: problem details, headers, credentials, tags and the schemas of actions."""

from collections.abc import Mapping
from typing import Any, Final

from commands import actions
from nexmdm.common import problems

Json = dict[str, Any]

PROBLEM: Final[Json] = {
    "title": "ProblemDetails",
    "type": "object",
    "description": "An error (RFC 9457). A program uses `code`, which never changes. `detail` is a text for people.",
    "required": ["type", "title", "status", "code", "detail"],
    "properties": {
        "type": {"type": "string", "const": "about:blank"},
        "title": {"type": "string", "description": "The name of the HTTP status."},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "code": {"type": "string", "pattern": "^[a-z_]+$"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "maxItems": problems.MOST_ERRORS,
            "description": (
                "Only with status 422: each error and its place in the request. There are at most "
                f"{problems.MOST_ERRORS} errors. For a list, only the error of the first wrong entry is given."
            ),
            "items": {
                "type": "object",
                "required": ["loc", "msg"],
                "properties": {
                    "loc": {
                        "type": "array",
                        "items": {"type": ["string", "integer"]},
                        "examples": [["body", "target"]],
                    },
                    "msg": {"type": "string"},
                },
            },
        },
    },
}
HEADERS: Final[Json] = {
    "X-Correlation-ID": {
        "description": (
            "The id of this request in the log. If the request has an X-Correlation-ID of 1 to 64 letters, digits, "
            "dots, hyphens and underscores, this is the same id. If not, the server creates a new id."
        ),
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
    },
    "Retry-After": {
        "description": "The seconds to wait before the next try.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    },
    "WWW-Authenticate": {
        "description": "The kind of credential that is required: Bearer, or NXD1 for a signed request.",
        "required": True,
        "schema": {"type": "string"},
    },
    "Idempotent-Replayed": {
        "description": "Present if this is the stored answer to an earlier request with the same Idempotency-Key.",
        "schema": {"type": "string", "const": "true"},
    },
}
PARAMETERS: Final[Json] = {
    "X-Admin": {
        "description": "The admin key. The key names the principal, whose HMAC secret signs the request.",
        "schema": {"type": "string"},
    },
    "X-Timestamp": {
        "description": "The present time in whole seconds since 1970, at most 300 s from the server's clock.",
        "schema": {"type": "string", "pattern": "^[0-9]{1,12}$"},
    },
    "X-Signature": {
        "description": "`v1=` and the signature. See the security scheme SignedRequest.",
        "schema": {"type": "string", "pattern": "^v1=[0-9a-f]{64}$"},
    },
    "Idempotency-Key": {
        "description": (
            "A new key for each new request. If the client repeats the request with the same key within 24 hours, "
            "the client gets the same answer. The server does not carry out the request again."
        ),
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{16,64}$"},
    },
}
SECURITY: Final[Mapping[str, Json]] = {
    "DeviceBearer": {"description": "A phone's device token, from its registration or its latest rotation."},
    "EnrollmentBearer": {"description": "An enrollment token that an admin created."},
    "SignedRequest": {
        "description": "Sign every request with the HMAC secret of the admin key, and send X-Admin, X-Timestamp and "
        "X-Signature. Every method except GET also requires an Idempotency-Key. See Signing, above. `manage.py fleet "
        "sign` prints these headers."
    },
    "MetricsBearer": {"type": "http", "scheme": "bearer", "description": "METRICS_TOKEN, if it is set."},
}
TAGS: Final = (
    {"name": "device", "description": "The requests of a phone, with its token as the bearer token."},
    {"name": "commands", "description": "Commands to phones, their deliveries and their results."},
    {"name": "devices", "description": "Devices, their tags, and enrollment tokens."},
    {"name": "fleet", "description": "Revocation of devices, the summary of the fleet, and the audit."},
    {"name": "operations", "description": "Health, readiness and metrics, for monitoring."},
)


def action_params() -> Json:
    """Return the schema of the parameters of each action, by the name of the schema."""
    found: Json = {}
    for action in actions.CATALOGUE.values():
        schema = action.model_json_schema(ref_template="#/components/schemas/{model}")
        found |= schema.pop("$defs", {})
        found[_params_name(action)] = schema
    return found


def _params_name(action: type[actions.Action]) -> str:
    return f"{action.__name__}Params"


def new_command(schema: Json) -> Json:
    """Return the schema of the body of a new command, with the names and the parameters of all actions."""
    listed = [f"`{action.name}`: {_params_name(action)}" for action in actions.CATALOGUE.values()]
    refs = [{"$ref": f"#/components/schemas/{_params_name(action)}"} for action in actions.CATALOGUE.values()]
    described = {
        "action": {"title": "Action", "type": "string", "enum": list(actions.CATALOGUE)},
        "params": {
            "title": "Params",
            "anyOf": refs,
            "description": f"The parameters of the action. {'; '.join(listed)}.",
        },
    }
    return schema | {"properties": schema["properties"] | described}
