"""The OpenAPI document is valid, complete and correct."""

import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Final

import openapi_spec_validator
import pytest

from commands.actions import CATALOGUE
from nexmdm.api.application import api
from nexmdm.api.error_table import ERRORS
from tests.support.actors import Admin, Client

Json = dict[str, Any]

METHODS = {"get", "head", "post", "patch", "delete"}
EVERYWHERE = {"400", "408", "413", "415", "422", "431", "500"}
WITH_A_CREDENTIAL = EVERYWHERE | {"401", "429", "503"}


@pytest.fixture(scope="module")
def document(client_of_module: Client) -> Json:
    """The document as it is served."""
    answer = client_of_module.request("GET", "/openapi.json")
    assert answer.status == HTTPStatus.OK
    found: Json = answer.json
    return found


@pytest.fixture(scope="module")
def client_of_module() -> Client:
    """A client that lives as long as the document."""
    return Client()


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def operation(document: Json, name: str) -> Json:
    (found,) = (one for _, _, one in operations(document) if one["operationId"] == name)
    return found


def resolved(document: Json, found: Json) -> Json:
    while "$ref" in found:
        assert found["$ref"].startswith("#/")
        reference = found["$ref"]
        found = document
        for part in reference[2:].split("/"):
            found = found[part]
    return found


def references(found: Any) -> Iterator[str]:
    if isinstance(found, dict):
        if isinstance(found.get("$ref"), str):
            yield found["$ref"]
        for inner in found.values():
            yield from references(inner)
    if isinstance(found, list):
        for inner in found:
            yield from references(inner)


def codes(document: Json, found: Json, status: str) -> set[str]:
    answer = resolved(document, found["responses"][status])
    return set(answer["content"]["application/problem+json"]["examples"])


def parameters(document: Json, found: Json, source: str) -> dict[str, Json]:
    every = [resolved(document, one) for one in found["parameters"]]
    return {one["name"]: one for one in every if one["in"] == source}


def test_the_document_is_valid_openapi(document: Json) -> None:
    openapi_spec_validator.validate(document)


def test_the_document_has_the_parts_of_openapi_3_1(document: Json) -> None:
    assert document["openapi"] == "3.1.0"
    assert {"title", "version", "description"} <= document["info"].keys()
    assert all(path.startswith("/") and methods.keys() <= METHODS for path, methods in document["paths"].items())
    for kind, components in document["components"].items():
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in components), kind


def test_every_reference_resolves(document: Json) -> None:
    found = set(references(document))
    assert found
    for reference in found:
        assert resolved(document, {"$ref": reference})


def test_every_component_of_answers_headers_and_parameters_is_used(document: Json) -> None:
    used = set(references(document))
    for kind in ("responses", "headers", "parameters"):
        assert {f"#/components/{kind}/{name}" for name in document["components"][kind]} <= used


def test_operation_ids_are_short_and_unique(document: Json) -> None:
    names = [found["operationId"] for _, _, found in operations(document)]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z][A-Za-z]{3,30}", name) for name in names)
    assert {"issueCommand", "heartbeat", "register", "actionResult", "readMetrics"} <= set(names)


def test_every_operation_has_a_summary_of_one_sentence(document: Json) -> None:
    for _, _, found in operations(document):
        assert found["summary"]
        assert not found["summary"].endswith(".")
        assert "\n" not in found["summary"]
    rotate = operation(document, "rotate")
    assert rotate["summary"] == "Get a new device token and command key"
    assert rotate["description"].startswith("The old token and key work until the new token is first used.")


def test_every_registered_route_and_its_methods_are_in_the_document(document: Json, client: Client) -> None:
    routes = {"/" + re.sub(r"<\w+:(\w+)>", r"{\1}", str(one.pattern)) for one in api.urls[0]}
    ours = {route for route in routes if route.startswith(("/v1", "/admin"))}
    assert len(ours) > 15
    assert ours <= document["paths"].keys()
    for path, methods in document["paths"].items():
        target = path.replace("{tag}", "floor-1").replace("{", "").replace("}", "")
        target = re.sub(r"\w+_id", "0192f0c1-b000-7abc-8def-0123456789ab", target)
        allowed = client.request("OPTIONS", target).headers["allow"]
        assert set(allowed.lower().split(", ")) == methods.keys(), path


def test_path_parameters_are_declared_and_can_be_not_found(document: Json) -> None:
    for _, path, found in operations(document):
        declared = parameters(document, found, "path")
        assert set(re.findall(r"{(\w+)}", path)) == declared.keys()
        assert all(one["required"] is True for one in declared.values())
        assert not declared or codes(document, found, "404") == {"not_found"}


def test_every_operation_lists_its_errors_as_problem_details(document: Json) -> None:
    for method, path, found in operations(document):
        expected = WITH_A_CREDENTIAL if "security" in found else EVERYWHERE
        assert expected <= found["responses"].keys(), (method, path)
        for status in found["responses"].keys() - {"200"}:
            answer = resolved(document, found["responses"][status])
            if "application/problem+json" not in answer["content"]:
                assert (path, status) == ("/readyz", "503")
                continue
            content = answer["content"]["application/problem+json"]
            assert content["schema"] == {"$ref": "#/components/schemas/ProblemDetails"}
            for code, example in content["examples"].items():
                assert (example["value"]["code"], example["value"]["status"]) == (code, int(status))
                assert example["value"]["detail"]


def test_every_error_of_the_table_is_an_answer_of_some_operation(document: Json) -> None:
    documented = {
        (int(status), code)
        for _, path, found in operations(document)
        for status in found["responses"].keys() - {"200"}
        if (path, status) != ("/readyz", "503")
        for code in codes(document, found, status)
    }
    assert {(status, code) for status, code, _ in ERRORS.values()} <= documented
    assert {(400, "invalid_host"), (400, "invalid_json"), (422, "unknown_devices"), (429, "rate_limited")} <= documented
    assert {(503, "overloaded"), (503, "database_unavailable")} <= documented


def test_the_headers_of_answers_are_described(document: Json) -> None:
    for method, _, found in operations(document):
        signed_write = found.get("security") == [{"SignedRequest": []}] and method != "get"
        for status, answer in found["responses"].items():
            headers = resolved(document, answer)["headers"].keys()
            assert "X-Correlation-ID" in headers
            assert ("Retry-After" in headers) == (status in ("429", "503"))
            assert ("WWW-Authenticate" in headers) == (status == "401")
            assert ("Idempotent-Replayed" in headers) == (status == "200" and signed_write)


def test_a_signed_operation_requires_the_headers_of_its_signature(document: Json) -> None:
    for method, path, found in operations(document):
        declared = parameters(document, found, "header")
        expected = {"X-Admin", "X-Timestamp", "X-Signature"} | ({"Idempotency-Key"} if method != "get" else set())
        assert declared.keys() == (expected if path.startswith("/admin") else set())
        assert all(one["required"] is True for one in declared.values())


def test_the_credentials_are_described(document: Json) -> None:
    schemes = document["components"]["securitySchemes"]
    assert {name: one["type"] for name, one in schemes.items()} == {
        "DeviceBearer": "http",
        "EnrollmentBearer": "http",
        "MetricsBearer": "http",
        "SignedRequest": "apiKey",
    }
    assert all(one["description"] for one in schemes.values())
    named = {name for _, _, found in operations(document) for one in found.get("security", []) for name in one}
    assert named == schemes.keys()


def test_the_catalogue_of_actions_is_described(document: Json) -> None:
    schemas = document["components"]["schemas"]
    body = operation(document, "issueCommand")["requestBody"]["content"]["application/json"]["schema"]
    fields = resolved(document, body)["properties"]
    assert fields["action"]["enum"] == list(CATALOGUE)
    offered = {one["$ref"].rsplit("/", 1)[1] for one in fields["params"]["anyOf"]}
    assert offered == {f"{action.__name__}Params" for action in CATALOGUE.values()}
    for action in CATALOGUE.values():
        assert schemas[f"{action.__name__}Params"]["properties"].keys() == action.model_fields.keys()
        assert action.name in fields["params"]["description"]


DECIDING: Final = {
    "register": {"hardware_id", "alias"}, "heartbeat": set(), "actionResult": {"request_id", "status"},
}  # fmt: skip


@pytest.mark.parametrize("name", DECIDING)
def test_each_field_of_a_phone_states_whether_it_can_be_a_cause_of_422(document: Json, name: str) -> None:
    body = resolved(document, operation(document, name)["requestBody"]["content"]["application/json"]["schema"])
    fields = body["properties"] | (
        document["components"]["schemas"]["Status"]["properties"] if name == "heartbeat" else {}
    )
    assert {field for field, one in fields.items() if one["description"].startswith("Decides:")} == DECIDING[name]
    assert {one["description"].partition(":")[0] for one in fields.values()} <= {"Decides", "Informs"}
    causes = ", ".join(f"`{field}`" for field in fields if field in DECIDING[name]) or "none"
    assert operation(document, name)["description"].endswith(f"can be a cause of 422: {causes}.")


@pytest.mark.parametrize("name", DECIDING)
def test_the_warnings_of_an_answer_are_described_and_may_be_absent(document: Json, name: str) -> None:
    answer = operation(document, name)["responses"]["200"]["content"]["application/json"]["schema"]
    described = resolved(document, answer)
    assert described["properties"]["warnings"]["maxItems"] == 10
    assert "warnings" not in described["required"]


def test_refusals_match_the_document(document: Json, admin: Admin) -> None:
    unsigned = admin.client.request("GET", "/admin/devices")
    unknown = admin.get("/admin/devices/0192f0c1-b000-7abc-8def-0123456789ab")
    empty = admin.command("ping", to={"tags": ["nobody"]})
    keyless = admin.call("POST", "/admin/command", {"action": "ping"}, idempotency_key="short")
    for name, answer in (
        ("listDevices", unsigned), ("readDevice", unknown), ("issueCommand", empty), ("issueCommand", keyless),
    ):  # fmt: skip
        documented = operation(document, name)["responses"][str(answer.status)]
        assert answer.code in codes(document, operation(document, name), str(answer.status))
        promised = {header.lower() for header in resolved(document, documented)["headers"]}
        assert promised <= answer.headers.keys()
        assert answer.json.keys() <= document["components"]["schemas"]["ProblemDetails"]["properties"].keys()
