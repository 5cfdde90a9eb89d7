"""docs/agent/vectors.json: the server's code computes the same values, and the Python agent accepts or refuses them."""

import json
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import pytest
from pytest_django import Settings

from commands import envelope
from devices import credentials, tokens
from tests.support.agents import FOLDER, python_agent

VECTORS: Final[dict[str, list[dict[str, Any]]]] = json.loads((FOLDER / "vectors.json").read_text())
PREFIXES: Final = {"device": tokens.DEVICE_PREFIX, "enrollment": tokens.ENROLLMENT_PREFIX}


@pytest.mark.parametrize("vector", VECTORS["tokens"], ids=lambda vector: vector["token"][:12])
def test_a_token_is_made_and_found_intact(vector: dict[str, Any]) -> None:
    made = tokens.make(PREFIXES[vector["kind"]], UUID(vector["id"]), bytes.fromhex(vector["secret_hex"]))
    assert made.text == vector["token"]
    assert python_agent().is_intact(vector["token"])


@pytest.mark.parametrize("vector", VECTORS["damaged_tokens"], ids=lambda vector: vector["why"])
def test_a_damaged_token_is_refused(vector: dict[str, Any]) -> None:
    assert [tokens.parse(prefix, vector["token"]) for prefix in PREFIXES.values()] == [None, None]
    assert not python_agent().is_intact(vector["token"])


@pytest.mark.parametrize("vector", VECTORS["command_keys"], ids=lambda vector: vector["generation"])
def test_a_command_key_comes_from_signing_key_device_and_generation(vector: dict[str, Any], settings: Settings) -> None:
    settings.COMMAND_SIGNING_KEYS = [vector["command_signing_key"]]
    (key_id,) = credentials.command_key_ids()
    found = credentials.command_key(vector["device_id"], vector["generation"], key_id)
    assert found == vector["command_key"]


@pytest.mark.parametrize("vector", VECTORS["signatures"], ids=lambda vector: vector["envelope"]["action"])
def test_an_envelope_is_signed_and_trusted(vector: dict[str, Any], settings: Settings) -> None:
    settings.COMMAND_SIGNING_KEYS = [VECTORS["command_keys"][0]["command_signing_key"]]
    (key_id,) = credentials.command_key_ids()
    sent = vector["envelope"]
    times = (datetime.fromisoformat(sent[name]) for name in ("issued_at", "expires_at"))
    content = envelope.Content(UUID(sent["request_id"]), sent["action"], sent["params"], *times)
    assert envelope.seal(content, envelope.Recipient(vector["device_id"], vector["generation"], key_id)) == sent
    assert python_agent().sign(vector["command_key"], vector["device_id"], sent) == sent["signature"]


@pytest.mark.parametrize("vector", VECTORS["signatures"], ids=lambda vector: vector["envelope"]["action"])
def test_the_signed_text_is_the_one_that_is_shown(vector: dict[str, Any]) -> None:
    sent = vector["envelope"]
    fields = ("request_id", "action", "params", "issued_at", "expires_at")
    assert vector["signed_text"] == "\n".join(["NXC1", vector["device_id"], *(sent[name] for name in fields)])


@pytest.mark.parametrize("vector", VECTORS["bad_signatures"], ids=lambda vector: vector["why"])
def test_a_bad_signature_is_another_one(vector: dict[str, Any]) -> None:
    sent = vector["envelope"]
    assert python_agent().sign(vector["command_key"], vector["device_id"], sent) != sent["signature"]
