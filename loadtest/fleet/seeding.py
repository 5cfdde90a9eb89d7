"""Seed a large fleet, and a month of its commands, directly into the database: `python -m loadtest.fleet`.

A registration needs a bcrypt hash, which takes 62 ms of a core. So 100,000 registrations would take nearly two hours.
This program writes the devices by COPY, each with the digest of a real token. Their tokens are derived from SECRET_KEY,
so the next run uses the same fleet. The seeded deliveries cause no pushes. Run the program with the settings of the
server that uses the database.
"""

import argparse
import hmac
import sys
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.db import Error, connection, transaction
from uuid_utils.compat import uuid7

from commands import finishing
from devices import credentials, enrollment, tokens
from loadtest.fleet import credentials_file
from loadtest.fleet.credentials_file import Member
from nexmdm.common import database, identity

_COLUMNS: Final = (
    "id", "hardware_id", "hardware_key", "tags", "manufacturer", "model", "os_version", "push_token", "token_hash",
    "token_digest", "token_digest_key", "token_used_at", "command_key_id", "generation", "next_hash", "next_digest_key",
    "next_command_key_id", "next_generation", "enrolled_with_id", "enrolled_at",
)  # fmt: skip
_COPY: Final = f"COPY devices_device ({', '.join(_COLUMNS)}) FROM STDIN"
_PRESENCE: Final = """
    INSERT INTO devices_presence (device_id, agent_version)
    SELECT id, '' FROM devices_device WHERE enrolled_with_id = %s
"""
_HISTORY: Final = Path(__file__).with_name("history.sql")
_AUDIT: Final = """
    INSERT INTO nexmdm_auditentry (
        principal, address, method, path, body_sha256, status, code, request_id, correlation_id, action, target,
        device_count, dry_run
    )
    SELECT 'admin', '127.0.0.1', 'POST', '/admin/command', encode(sha256(id::text::bytea), 'hex'), 200, '', id,
        'seeded', action, 'all', device_count, false
    FROM commands_command WHERE note = 'seeded' AND id > %s ORDER BY id LIMIT %s
    RETURNING request_id
"""
FINISHED_AT_ONCE: Final = 5000
AUDITED: Final = 100_000
AUDITED_AT_ONCE: Final = 200
"""The number of audit entries in one transaction. Each entry updates the same row. Until the transaction ends,
PostgreSQL must read through all versions of this row."""

_KNOWN: Final = """
    SELECT id, push_token, command_key_id FROM devices_device
    WHERE hardware_id LIKE %s AND revoked_at IS NULL AND generation = 1 AND next_hash = ''
    ORDER BY id LIMIT %s
"""


def seed(count: int, *, with_push_tokens: bool) -> list[Member]:
    """Return `count` phones that the server knows: first the phones of an earlier seeding, and then new phones."""
    known = [_member(*row) for row in _known(count, with_push_tokens)]
    missing = count - len(known)
    if not missing:
        return known
    device_ids = [uuid7() for _ in range(missing)]
    _insert(device_ids, with_push_tokens)
    key_id = credentials.command_key_ids()[0]
    return known + [_member(one, _push_token(one, with_push_tokens), key_id) for one in device_ids]


def _known(count: int, with_push_tokens: bool) -> list[Any]:
    return database.rows(_KNOWN, [f"{_prefix(with_push_tokens)}%", count])


def _prefix(with_push_tokens: bool) -> str:
    """Return the prefix of the hardware ids of this fleet.

    The prefix contains an id of SECRET_KEY. If SECRET_KEY has changed, the tokens of an earlier fleet cannot be derived
    again. The prefix then differs, so the earlier fleet is not used.
    """
    return f"seeded-{tokens.digest_keys()[0].id}-{'push' if with_push_tokens else 'poll'}-"


def _push_token(device_id: UUID, with_push_tokens: bool) -> str | None:
    return f"ok-{device_id}" if with_push_tokens else None


def _token(device_id: UUID) -> tokens.Token:
    secret = hmac.digest(settings.SECRET_KEY.encode(), b"nexmdm seeded device\n" + device_id.bytes, "sha256")
    return tokens.make(tokens.DEVICE_PREFIX, device_id, secret)


def _member(device_id: UUID, push_token: str | None, command_key_id: str) -> Member:
    command_key = credentials.command_key(device_id, 1, command_key_id)
    return Member(str(device_id), _token(device_id).text, command_key, push_token or "")


@transaction.atomic
def _insert(device_ids: list[UUID], with_push_tokens: bool) -> None:
    database.execute("SET LOCAL statement_timeout = 0")
    database.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
    enrolled_with, _ = enrollment.create_token(
        label="load test, seeded", max_uses=len(device_ids), lives=timedelta(days=1), tags=[], re_enroll=False
    )
    enrollment.revoke_token(enrolled_with.id)
    with connection.cursor() as cursor, cursor.copy(_COPY) as copy:
        for row in _rows(device_ids, (enrolled_with.id, enrolled_with.created_at), with_push_tokens):
            copy.write_row(row)
    database.execute(_PRESENCE, [enrolled_with.id])


def _rows(device_ids: list[UUID], enrolled: tuple[UUID, datetime], with_push_tokens: bool) -> Iterable[tuple[Any, ...]]:
    key, command_key_id = tokens.digest_keys()[0], credentials.command_key_ids()[0]
    prefix = _prefix(with_push_tokens)
    # The hash of an unknown secret. If the digest of a token is deleted, the token is refused without an error.
    unused_hash = credentials.new_secret().hash
    for one in device_ids:
        hardware_id = f"{prefix}{one}"
        yield (
            one, hardware_id, identity.comparison_key(hardware_id), "{}", "Example", "Simulated", "14",
            _push_token(one, with_push_tokens), unused_hash, tokens.digest(_token(one).text, key.value), key.id,
            enrolled[1], command_key_id, 1, "", "", "", 1, *enrolled,
        )  # fmt: skip


def seed_history(deliveries: int) -> None:
    """Add a month of commands to the existing devices, with `deliveries` deliveries, their attempts and reports.

    The first AUDITED commands also get audit entries, whose time is the present.
    """
    with transaction.atomic():
        database.execute(_HISTORY.read_text(encoding="utf-8"), {"deliveries": deliveries})
    while finishing.finish(FINISHED_AT_ONCE):
        pass
    last = UUID(int=0)
    for _ in range(AUDITED // AUDITED_AT_ONCE):
        written = database.rows(_AUDIT, [last, AUDITED_AT_ONCE])
        if not written:
            return
        (last,) = written[-1]


def _settle() -> None:
    """Let PostgreSQL analyse its tables, as autovacuum would within a day."""
    database.execute("SET statement_timeout = 0")
    database.execute("VACUUM ANALYZE")


def main() -> int:
    """Seed the fleet that the command line describes, and write its credentials. Return 1 if the database refuses."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.fleet", description=__doc__)
    parser.add_argument("--devices", type=int, default=1000, help="the number of devices (1,000)")
    parser.add_argument("--roster", type=Path, help="the file for their credentials, with mode 0600")
    parser.add_argument("--push-tokens", action="store_true", help="give them push tokens that the fake FCM accepts")
    parser.add_argument("--deliveries", type=int, default=0, help="the number of past deliveries to add (none)")
    arguments = parser.parse_args()
    try:
        members = seed(arguments.devices, with_push_tokens=arguments.push_tokens)
        if arguments.roster:
            credentials_file.write(arguments.roster, members)
        if arguments.deliveries:
            seed_history(arguments.deliveries)
        _settle()
    except Error as error:
        sys.stderr.write(f"Seeding failed: {error}\n")
        return 1
    return 0
