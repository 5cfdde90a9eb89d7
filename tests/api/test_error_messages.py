"""An error message uses the names of the API: `target.device_ids`, and not "the device's ids"."""

import re
from typing import Any, Final

import pytest

from nexmdm.common import problems
from nexmdm.common.domain_error import DomainError
from nexmdm.common.problems import Problem
from tests.support import error_messages
from tests.support.actors import Client
from tests.support.processes import ROOT

NOUNS: Final = {
    "device_token": "a phone sends it as the bearer token, which has no field",
    "enrollment_token": "a phone sends it as the bearer token, which has no field",
    "push_token": "a message about the field push_token states which kind of text it must be",
}
"""Names whose words are also a term of docs/glossary.md, and why a message may use the term."""

SYNONYMS: Final = {
    "expires_in_seconds": ("expiry", "expiration", "time to live", "lifetime"),
    "expect_count": ("expected count", "expected number", "number expected"),
    "wait_seconds": ("waiting time", "wait time"),
    "request_id": ("id of the command", "command id", "command's id"),
    "Idempotency-Key": ("key of the request",),
}
"""Further ways to paraphrase a name, which its words do not show."""


Json = dict[str, Any]


@pytest.fixture(scope="module")
def document() -> Json:
    """The published document."""
    found: Json = Client().request("GET", "/openapi.json").json
    return found


@pytest.fixture(scope="module")
def names(document: Json) -> set[str]:
    """The names of more than one word in the published document."""
    return error_messages.names_of(document)


def paraphrased(message: str, names: set[str]) -> list[str]:
    """Return the names of the API that a message paraphrases."""
    by_words = [name for name in names - set(NOUNS) if error_messages.paraphrases(name).search(message)]
    others = [name for name, ways in SYNONYMS.items() if re.search(rf"\b({'|'.join(ways)})\b", message, re.IGNORECASE)]
    return sorted({*by_words, *others})


def test_no_error_message_paraphrases_a_name_of_the_api(document: Json, names: set[str]) -> None:
    messages = error_messages.messages() | dict.fromkeys(error_messages.refusals_in(document), "the published document")
    found = {f"{place}: {text}": paraphrased(text, names) for text, place in messages.items()}
    assert {text: names for text, names in found.items() if names} == {}


def test_the_messages_are_found_wherever_they_are_written(document: Json) -> None:
    """A message for each way to write one; and the `detail` of every domain error."""
    found = error_messages.messages()
    assert {
        "must name exactly one of device_ids, aliases, tags, all",  # an argument of ValueError
        "The target contains …, but expect_count is …. No command was sent.",  # a domain error's own text
        "Too many requests. Try again in … s.",  # given to super().__init__()
        "`…` requires `target.device_ids`",  # in a list of errors
        "The body did not arrive within … s.",  # a variable, given to a problem
        "There is nothing at this path.",  # a constant
        "This path does not allow this method. The Allow header lists the allowed methods.",  # looked up by status
    } <= set(found)
    details = {
        error.detail for error in error_messages.domain_errors() if error.__module__.partition(".")[0] != "tests"
    }
    assert details - set(found) == set()
    assert "There is nothing at this path, or nothing has this id." in error_messages.refusals_in(document)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ('raise ValueError("must name the device ids")', "device_ids"),
        ('raise ValueError("must be one of the device\'s ids")', "device_ids"),
        ('raise ValueError("must contain the ids of the devices")', "device_ids"),
        ('raise ValueError(f"must be shorter than {LIMIT}: it is the hardware id")', "hardware_id"),
        ('class Late(DomainError):\n    detail = "The request id is not known. Send a new one."', "request_id"),
        ('class Late(DomainError):\n    def __init__(self):\n        super().__init__("Send a dry run.")', "dry_run"),
        ('def late():\n    text = "Send the wait seconds."\n    return Problem(400, "late", text)', "wait_seconds"),
        ('def late():\n    return {"loc": [], "msg": "needs the expect count"}', "expect_count"),
        ('problems.general(400, "Choose a later expiry.")', "expires_in_seconds"),
        ('problems.general(400, "Send an idempotency key.")', "Idempotency-Key"),
        ('LATE = {400: "Send the next cursor."}\nproblems.general(400, LATE[400])', "next_cursor"),
    ],
)
def test_an_invented_paraphrase_is_found_under_its_name(names: set[str], source: str, name: str) -> None:
    scope: dict[str, Any] = {"DomainError": DomainError, "Problem": Problem, "problems": problems}
    scope["LATE"] = {400: "Send the next cursor."}
    found = [one for text in error_messages.messages_in(source, scope) for one in paraphrased(text, names)]
    assert name in found


@pytest.mark.parametrize(
    "message",
    [
        "The number of devices in target differs from expect_count.",
        "`wipe` requires `target.device_ids`.",
        "Send it to POST /admin/devices/{device_id}/reinstate.",
        "The enrollment token has expired. Ask an admin for a new enrollment token.",
    ],
)
def test_a_name_and_a_term_of_the_glossary_are_not_paraphrases(names: set[str], message: str) -> None:
    assert paraphrased(message, names) == []


def test_each_exception_is_a_name_and_a_term_that_a_message_uses(document: Json, names: set[str]) -> None:
    glossary = (ROOT / "docs" / "glossary.md").read_text()
    texts = " ".join([*error_messages.messages(), *error_messages.refusals_in(document)])
    assert {*NOUNS, *SYNONYMS} - names == set()
    assert [name for name in NOUNS if f"- **{name.replace('_', ' ')}**" not in glossary] == []
    assert [name for name in NOUNS if not error_messages.paraphrases(name).search(texts)] == []
