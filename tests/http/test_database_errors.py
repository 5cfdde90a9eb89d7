"""The meaning of PostgreSQL's errors for the client: try again later, try again immediately, or our own fault."""

import pytest

from nexmdm.common import database
from nexmdm.common.postgresql import outage
from nexmdm.monitoring import fleet_summary
from tests.support.actors import Admin

UNAVAILABLE = (503, "database_unavailable")


@pytest.mark.parametrize(
    ("code", "status_and_code"),
    [
        ("08006", UNAVAILABLE),  # connection failure
        ("08P01", UNAVAILABLE),  # PgBouncer's code for most errors
        ("25006", UNAVAILABLE),  # read-only
        ("25P03", UNAVAILABLE),  # an idle transaction was ended
        ("53100", UNAVAILABLE),  # disk full
        ("53200", UNAVAILABLE),  # out of memory
        ("53300", UNAVAILABLE),  # out of connections
        ("55P03", UNAVAILABLE),  # a lock was not free in time
        ("57014", UNAVAILABLE),  # a statement took too long
        ("57P01", UNAVAILABLE),  # stopping
        ("57P03", UNAVAILABLE),  # starting
        ("58030", UNAVAILABLE),  # I/O error
        ("40001", (503, "overloaded")),  # serialization failure
        ("40P01", (503, "overloaded")),  # deadlock
        ("22P02", (500, "internal")),  # malformed text
        ("42P01", (500, "internal")),  # no such table
        ("XX000", (500, "internal")),  # PostgreSQL's own fault
    ],
)
def test_an_error_is_answered_by_its_meaning(
    admin: Admin, monkeypatch: pytest.MonkeyPatch, code: str, status_and_code: tuple[int, str]
) -> None:
    def fail() -> None:
        database.execute(f"DO $$ BEGIN RAISE EXCEPTION 'as if' USING ERRCODE = '{code}'; END $$")

    monkeypatch.setattr(fleet_summary, "summary", fail)
    monkeypatch.setattr(outage, "HELD_OFF_SECONDS", 0)
    answer = admin.get("/admin/summary")
    assert (answer.status, answer.code) == status_and_code
    assert ("retry-after" in answer.headers) is (answer.status == 503)
