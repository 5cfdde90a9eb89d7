"""Paths: a malformed id in a path is not found; and HEAD is refused under /admin."""

import re
from collections.abc import Iterator
from typing import Any, Final

import pytest
from pytest_django import Settings

from nexmdm.api.application import api
from tests.support.actors import Admin

PATHS: Final[dict[str, Any]] = api.get_openapi_schema()["paths"]
ID: Final = "0192f0c1-b000-7abc-8def-0123456789ab"
MALFORMED_IDS: Final = (
    "4711", ID.upper(), ID.replace("-", ""), f"{{{ID}}}", f"{ID}0", ID[:-1], f"%20{ID}", f"{ID}%0A", "%00", "null",
    "-1", "%2e%2e", f"{ID[:-1]}g", f"urn:uuid:{ID}", "*",
)  # fmt: skip
MALFORMED_TAGS: Final = ("a%20b", "x" * 65, "%C3%A9", "a,b", "%00", "<b>")


def malformed(path: str) -> Iterator[str]:
    """The paths of a route with parameters, with one malformed parameter at a time."""
    good = {name: "lobby" if name == "tag" else ID for name in re.findall(r"{(\w+)}", path)}
    for name in good:
        for wrong in MALFORMED_TAGS if name == "tag" else MALFORMED_IDS:
            yield path.format(**good | {name: wrong})


@pytest.mark.parametrize("path", [path for path in PATHS if "{" in path])
def test_a_malformed_id_in_a_path_is_not_found(admin: Admin, settings: Settings, path: str) -> None:
    settings.AUTH_FAILURE_RATE_LIMIT = settings.ADMIN_RATE_LIMIT = settings.ADMIN_READ_RATE_LIMIT = "1000/m"
    for target in malformed(path):
        for method in map(str.upper, PATHS[path]):
            signed = admin.call(method, target, None if method == "GET" else {})
            assert (signed.status, signed.code) == (404, "not_found"), (method, target, signed.body)
            assert admin.client.request(method, target).code == "not_found"


@pytest.mark.parametrize("path", [path for path in PATHS if path.startswith("/admin/")])
def test_head_is_refused_under_admin_with_the_allowed_methods(admin: Admin, path: str) -> None:
    target = path.replace("{tag}", "lobby")
    target = re.sub(r"{\w+}", ID, target)
    for headers in ({}, admin.headers("HEAD", target, b"")):
        answer = admin.client.request("HEAD", target, None, headers)
        assert answer.status == 405
        assert set(answer.headers["allow"].split(", ")) == {method.upper() for method in PATHS[path]}
