"""The forms of the two tokens, and malformed ones that are refused without the database."""

from uuid import UUID

import pytest

from devices import tokens
from tests.support.actors import Client

DEVICE = UUID("0192f0c1-a2b3-7d4e-8f90-a1b2c3d4e5f6")
SECRET = bytes(range(32))
VECTOR = "nxd_02y8whJPQjxgAznAaaUVi2_003aUlTJC7tjlCTQj2uNU3MFagCXG9LRKRcwGkBIDlf3mZxKo"


def with_checksum(head: str) -> str:
    return head + tokens._checksum(head)


def test_a_device_token_matches_the_vector() -> None:
    token = tokens.make(tokens.DEVICE_PREFIX, DEVICE, SECRET)
    assert (token.text, len(token.text)) == (VECTOR, 76)


def test_a_token_contains_the_id_of_its_owner() -> None:
    token = tokens.parse(tokens.DEVICE_PREFIX, VECTOR)
    assert token is not None
    assert (token.id, token.secret) == (DEVICE, VECTOR[27:70])


@pytest.mark.parametrize("number", [0, 1, 2**128 - 1])
@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
def test_every_id_and_every_secret_fits_its_place(number: int, secret: bytes) -> None:
    token = tokens.make(tokens.ENROLLMENT_PREFIX, UUID(int=number), secret)
    assert len(token.text) == 76
    assert tokens.parse(tokens.ENROLLMENT_PREFIX, token.text) == token


@pytest.mark.parametrize("position", range(len(VECTOR)))
def test_one_changed_character_anywhere_is_refused(position: int) -> None:
    for other in "0AZaz_-":
        if other != VECTOR[position]:
            assert tokens.parse(tokens.DEVICE_PREFIX, VECTOR[:position] + other + VECTOR[position + 1 :]) is None


def test_two_swapped_neighbours_are_refused() -> None:
    for at in range(len(VECTOR) - 1):
        swapped = VECTOR[:at] + VECTOR[at + 1] + VECTOR[at] + VECTOR[at + 2 :]
        assert swapped == VECTOR or tokens.parse(tokens.DEVICE_PREFIX, swapped) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nxd_",
        VECTOR[:-1],
        VECTOR + "0",
        VECTOR + "\n",
        " " + VECTOR,
        VECTOR.lower(),
        VECTOR[:-6] + "ⅷⅷⅷⅷⅷⅷ",
        with_checksum(VECTOR[:69]),
        with_checksum(VECTOR[:70] + "0"),
    ],
)
def test_any_other_length_or_text_is_refused(text: str) -> None:
    assert tokens.parse(tokens.DEVICE_PREFIX, text) is None


def test_a_token_of_the_other_kind_is_refused() -> None:
    enrollment = tokens.make(tokens.ENROLLMENT_PREFIX, DEVICE, SECRET).text
    assert tokens.parse(tokens.DEVICE_PREFIX, enrollment) is None
    assert tokens.parse(tokens.ENROLLMENT_PREFIX, VECTOR) is None


@pytest.mark.parametrize("foreign", ["-", "_", "+", "/", " ", "\x00", "\n"])
def test_a_valid_check_sum_does_not_excuse_a_foreign_character(foreign: str) -> None:
    in_the_id = with_checksum(VECTOR[:10] + foreign + VECTOR[11:70])
    in_the_secret = with_checksum(VECTOR[:50] + foreign + VECTOR[51:70])
    assert tokens.parse(tokens.DEVICE_PREFIX, in_the_id) is None
    assert tokens.parse(tokens.DEVICE_PREFIX, in_the_secret) is None


def test_an_id_beyond_128_bits_is_refused() -> None:
    assert tokens.parse(tokens.DEVICE_PREFIX, with_checksum("nxd_" + "z" * 22 + VECTOR[26:70])) is None


def test_a_printed_token_does_not_show_its_secret() -> None:
    token = tokens.make(tokens.DEVICE_PREFIX, DEVICE, SECRET)
    assert token.secret not in repr(token)
    assert token.secret not in f"{token}"


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", f"Basic {VECTOR}", VECTOR, f"Bearer {VECTOR}, {VECTOR}"])
@pytest.mark.parametrize("target", ["/v1/heartbeat", "/v1/action-result", "/v1/token/rotate", "/v1/register"])
@pytest.mark.django_db
def test_anything_but_one_bearer_token_is_401(client: Client, target: str, header: str) -> None:
    bodies = {
        "/v1/action-result": {"request_id": str(DEVICE), "status": "received"},
        "/v1/register": {"hardware_id": "h"},
    }
    answer = client.request("POST", target, bodies.get(target, {}), {"Authorization": header})
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert answer.code == ("invalid_enrollment_token" if target == "/v1/register" else "invalid_token")
