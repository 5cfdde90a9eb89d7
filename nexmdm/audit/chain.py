"""The audit chain: each entry contains a SHA-256 hash of its own fields and of the hash of the entry before it.

The database writes the hashes (nexmdm/migrations/0009_audit_summary.py). This module computes each hash again with
separate code, and compares the result with the stored hash.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, timedelta
from hashlib import sha256
from typing import Final, Self

from django.db import transaction
from django.db.models.functions import Now

from nexmdm.common import database
from nexmdm.models import AuditEntry, AuditMark

WITHOUT_SUMMARY: Final = "nexmdm audit 1"
WITH_SUMMARY: Final = "nexmdm audit 2"
CHUNK: Final = 2000
"""The number of entries that are in memory at the same time."""

_PLACE: Final = re.compile(r"([0-9]{1,18}):([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the chain: the number of an entry, and the hash of this entry. As a text, a place is `17:4f3a…`."""

    entry_id: int
    hash: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the place that a text such as `17:4f3a…` describes. Raises ValueError if the text is not a place."""
        found = _PLACE.fullmatch(text.strip())
        if found is None:
            raise ValueError("A place in the audit is an entry's number, a colon, and the 64 digits of its hash.")
        return cls(int(found[1]), found[2])

    def __str__(self) -> str:
        return f"{self.entry_id}:{self.hash}"


BEGINNING: Final = Place(0, "0" * 64)
"""The place before the first entry of a chain from which no entry was ever deleted."""


@dataclass(frozen=True, slots=True)
class Verified:
    """The result of a verification that found no error.

    `entries` is the number of entries in the chain. `after` is the place of the last deleted entry, or BEGINNING.
    `newest` is the place of the newest entry.
    """

    entries: int
    after: Place
    newest: Place


class BrokenLink(Exception):
    """The audit was changed, but not by NexMDM. The text names the changed entries and the kind of the change.

    `entry_id` is the number of the first changed entry.
    """

    def __init__(self, first: int, what: str, *, last: int | None = None) -> None:
        several = last is not None and last > first
        super().__init__(f"Entries {first} to {last} were {what}" if several else f"Entry {first} was {what}")
        self.entry_id = first


class WitnessGone(Exception):
    """Retention has deleted the entry of the witness (see verify()). The witness cannot prove anything any more."""


class DeletedTooSoon(Exception):
    """Entries were deleted that retention would have kept."""


def digest(entry: AuditEntry) -> str:
    """Return the hash that an entry must contain, as hex: the SHA-256 of a JSON array of all its fields.

    Times in the array have microseconds. An entry without a summary has the hash that earlier versions of NexMDM
    computed.
    """
    summary = [entry.action, entry.target, entry.device_count, entry.dry_run]
    has_summary = summary != ["", "", None, None]
    fields = [
        WITH_SUMMARY if has_summary else WITHOUT_SUMMARY,
        entry.previous,
        entry.id,
        entry.at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        entry.principal,
        entry.admin_key_id,
        entry.idempotency_key,
        entry.address,
        entry.method,
        entry.path,
        entry.body_sha256,
        entry.status,
        entry.code,
        None if entry.request_id is None else str(entry.request_id),
        entry.correlation_id,
        *(summary if has_summary else []),
    ]
    return sha256(json.dumps(fields, ensure_ascii=False).encode()).hexdigest()


def newest() -> Place | None:
    """Return the place of the newest entry, or None if there is no entry. The entry is not verified."""
    mark = AuditMark.objects.filter(name=AuditMark.NEWEST).first()
    return None if mark is None else Place(mark.entry_id, mark.hash)


def verify(kept: timedelta, witness: Place | None = None) -> Verified:
    """Verify the chain from the oldest entry to the newest entry, in one snapshot of the database.

    `kept` is the age at which retention deletes entries. `witness` is a place that was recorded earlier. The chain must
    still contain the witness. The use of memory does not grow with the chain. Raises BrokenLink, DeletedTooSoon or
    WitnessGone.
    """
    with transaction.atomic():
        database.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        marks = {mark.name: Place(mark.entry_id, mark.hash) for mark in AuditMark.objects.all()}
        after = marks.get(AuditMark.PRUNED, BEGINNING)
        newest = marks.get(AuditMark.NEWEST, BEGINNING)
        entries, place, seen = 0, after, witness in (None, after)
        for place in _walk(after, newest):
            entries += 1
            seen = seen or place == witness
        _check_end(place, newest)
        _check_beginning(kept)
    if witness is not None and not seen:
        raise _contradicted(witness, after, newest)
    return Verified(entries, after, newest)


def _walk(place: Place, newest: Place) -> Iterator[Place]:
    """Yield the place of each entry, after the entry was compared with the entry before it."""
    for entry in AuditEntry.objects.order_by("id").iterator(chunk_size=CHUNK):
        _check(entry, place, newest)
        place = Place(entry.id, entry.hash)
        yield place


def _check(entry: AuditEntry, before: Place, newest: Place) -> None:
    if not before.entry_id < entry.id <= newest.entry_id:
        what = f"inserted: its number must be above {before.entry_id}, and at most {newest.entry_id}."
        raise BrokenLink(entry.id, what)
    if digest(entry) != entry.hash:
        raise BrokenLink(entry.id, "changed: its hash is not the hash of its fields.")
    if entry.previous != before.hash:
        raise _gap(entry, before)


def _gap(entry: AuditEntry, before: Place) -> BrokenLink:
    """Return the error for an entry that does not contain the hash of the place `before`. `before` is the place of the
    previous entry in the table.
    """
    written_after = AuditEntry.objects.filter(hash=entry.previous, id__lt=before.entry_id).first()
    if written_after is not None:
        first = AuditEntry.objects.filter(id__gt=written_after.id).earliest("id")
        what = f"inserted: entry {entry.id} was written directly after entry {written_after.id}."
        return BrokenLink(first.id, what, last=before.entry_id)
    if entry.id == before.entry_id + 1:
        what = f"rewritten: entry {entry.id} contains another hash for entry {before.entry_id}."
        return BrokenLink(before.entry_id, what)
    what = f"deleted: entry {entry.id} was not written directly after entry {before.entry_id}."
    return BrokenLink(before.entry_id + 1, what, last=entry.id - 1)


def _check_end(last: Place, newest: Place) -> None:
    """Compare the last entry in the table with the stored place of the newest entry."""
    if last.entry_id < newest.entry_id:
        what = f"deleted: entry {newest.entry_id} was the newest entry, but the table ends with entry {last.entry_id}."
        raise BrokenLink(last.entry_id + 1, what, last=newest.entry_id)
    if last != newest:
        raise BrokenLink(last.entry_id, "rewritten: its hash is not the hash that was recorded for the newest entry.")


def _check_beginning(kept: timedelta) -> None:
    """Raise DeletedTooSoon if the last deleted entry is younger than `kept`. If the time of this entry is not stored,
    do nothing.
    """
    mark = AuditMark.objects.filter(name=AuditMark.PRUNED, at__gt=Now() - kept).first()
    if mark is not None:
        raise DeletedTooSoon(
            f"Entries up to {mark.entry_id} were deleted. The last deleted entry is from {mark.at:%Y-%m-%dT%H:%M:%SZ}."
        )


def _contradicted(witness: Place, after: Place, newest: Place) -> Exception:
    """Return the error for a chain whose links are right, but which does not contain `witness`, the place that was
    recorded earlier.
    """
    if witness.entry_id < after.entry_id:
        return WitnessGone(f"Retention has deleted entry {witness.entry_id}. Use a newer place as the witness.")
    if witness.entry_id > newest.entry_id:
        return BrokenLink(newest.entry_id + 1, "deleted, and the end of the chain was changed.", last=witness.entry_id)
    what = f"rewritten, or an earlier entry was rewritten: `--witness` has another hash for entry {witness.entry_id}."
    return BrokenLink(witness.entry_id, what)
