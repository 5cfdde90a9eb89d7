"""A request is refused if one bit changed in the content that the signature covers, or in the signature itself."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pytest_django import Settings

from nexmdm.models import AuditEntry, StoredAnswer
from tests.support.actors import Admin, Client

HEADERS: Final = ("X-Admin", "X-Timestamp", "X-Signature", "Idempotency-Key")
NOWHERE: Final = {400, 404, 405}
"""If the changed target or method leads nowhere, no signature is required."""


@dataclass(frozen=True, slots=True)
class Request:
    """The parts of a signed request that can change."""

    method: str
    target: str
    body: bytes
    headers: dict[str, str]

    def send(self, client: Client) -> int:
        return client.request(self.method, self.target, self.body or None, self.headers).status

    def parts(self) -> list[str]:
        return ["method", "target", *(["body"] if self.body else []), *self.headers]

    def changed(self, part: str, bit: int) -> "Request":
        if part in self.headers:
            return replace(
                self, headers=self.headers | {part: _flipped(self.headers[part].encode(), bit).decode("latin-1")}
            )
        if part == "body":
            return replace(self, body=_flipped(self.body, bit))
        text = _flipped(getattr(self, part).encode(), bit).decode("latin-1")
        return replace(self, method=text) if part == "method" else replace(self, target=text)


def _flipped(raw: bytes, bit: int) -> bytes:
    place, flip = divmod(bit % (8 * len(raw)), 8)
    return raw[:place] + bytes([raw[place] ^ 1 << flip]) + raw[place + 1 :]


_NAMES: Final = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789._-", min_size=1, max_size=20)
_KEYS: Final = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789_-", min_size=16, max_size=64)
_BODIES: Final = st.one_of(
    st.binary(min_size=1, max_size=60),
    st.sampled_from([b'{"action":"ping","target":{"all":true}}', b"{}", '{"note":"Café ✓"}'.encode()]),
)
_UNSIGNED: Final = st.one_of(
    st.tuples(
        st.just("GET"), st.builds("/admin/devices?q={}&limit={}".format, _NAMES, st.integers(1, 500)), st.just(b"")
    ),
    st.tuples(st.just("GET"), st.just("/admin/summary"), st.just(b"")),
    st.tuples(st.just("POST"), st.just("/admin/command"), _BODIES),
    st.tuples(st.just("POST"), st.builds("/admin/tags/{}".format, _NAMES), _BODIES),
    st.tuples(st.just("PATCH"), st.builds("/admin/devices/{}".format, st.uuids()), _BODIES),
)


@pytest.fixture
def without_limits(settings: Settings) -> None:
    """Switch the rate limits off."""
    settings.ADMIN_RATE_LIMIT = settings.ADMIN_READ_RATE_LIMIT = settings.AUTH_FAILURE_RATE_LIMIT = "1000000/s"


def test_one_changed_bit_in_the_signed_content_is_refused(
    admin: Admin, client: Client, without_limits: None, record_property: Callable[[str, Any], None]
) -> None:
    flipped = 0

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(_UNSIGNED, _KEYS, st.data())
    def refused(unsigned: tuple[str, str, bytes], key: str, data: st.DataObject) -> None:
        nonlocal flipped
        method, target, body = unsigned
        headers = admin.headers(method, target, body, idempotency_key="" if method == "GET" else key)
        request = Request(method, target, body, headers)
        part = data.draw(st.sampled_from(request.parts()))
        changed = request.changed(part, data.draw(st.integers(0, 8 * 1024 - 1)))
        assume(changed.target.isascii() and changed.target.isprintable() and not set(changed.target) & set(" #"))
        done = AuditEntry.objects.count(), StoredAnswer.objects.count()
        status = changed.send(client)
        assert status == 401 or (part in ("method", "target") and status in NOWHERE), (part, changed)
        assert (AuditEntry.objects.count(), StoredAnswer.objects.count()) == done
        assert request.send(client) not in (401, 429, 500)
        flipped += 1

    refused()
    record_property("bits changed", flipped)
