"""The log of an error: its name, its place and the broken rule, but no value of the row."""

import json
from io import BytesIO
from typing import Any

import psycopg
import pytest
import structlog
from django.db import DataError, OperationalError, connection

from nexmdm.common import database
from nexmdm.common.postgresql.errors import safe_message
from tests.support.actors import Admin, Phone

PUSH_TOKEN = "unstorable-push-token-that-is-nobodys-business"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> BytesIO:
    """The lines that the API writes to its log."""
    written = BytesIO()
    monkeypatch.setattr("nexmdm.api.error_table.log", structlog.wrap_logger(structlog.BytesLogger(written)))
    return written


def forbid_push_tokens() -> None:
    """Make PostgreSQL refuse this push token; its message shows the whole row."""
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute("ALTER TABLE devices_device ADD CONSTRAINT trial CHECK (push_token NOT LIKE 'unstorable%')")


def test_a_row_that_postgresql_refuses_is_not_in_the_log(phone: Phone, written: BytesIO) -> None:
    forbid_push_tokens()
    answer = phone.heartbeat(push_token=PUSH_TOKEN)
    assert (answer.status, answer.code) == (500, "internal")
    line: dict[str, Any] = json.loads(written.getvalue())
    assert (line["event"], line["error"]) == ("request.failed", "IntegrityError")
    assert "SQLSTATE 23514 devices_device trial" in line["exception"]
    assert "push_targets.py" in line["exception"]
    for secret in (PUSH_TOKEN, "Failing row", phone.hardware_id):
        assert secret not in written.getvalue().decode()


def test_a_registration_that_postgresql_refuses_is_not_in_the_log(admin: Admin, written: BytesIO) -> None:
    forbid_push_tokens()
    answer = Phone(admin.client, "imei-of-nobody").register(admin.enrollment_token(), push_token=PUSH_TOKEN)
    assert answer.code == "internal"
    assert b"trial" in written.getvalue()
    for secret in (PUSH_TOKEN, "imei-of-nobody", "$2b$"):
        assert secret not in written.getvalue().decode()


def test_a_value_that_does_not_fit_is_not_logged(db: None) -> None:
    with pytest.raises(DataError) as raised:
        database.rows("SELECT %s::uuid", ["secret"])
    assert "secret" in str(raised.value)
    assert safe_message(raised.value) == "SQLSTATE 22P02"


def test_a_fault_of_the_database_itself_is_logged() -> None:
    with pytest.raises(psycopg.OperationalError) as raised:
        psycopg.connect("host=/nowhere connect_timeout=1")
    assert "/nowhere" in safe_message(raised.value)
    assert safe_message(OperationalError("the pool is empty")) == "the pool is empty"
    assert safe_message(ValueError("two\nlines")) == "two\nlines"
