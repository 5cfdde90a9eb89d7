"""The envelope: a command as a phone gets it, with its signature. A push and the answer to a heartbeat contain the same
envelope.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from typing import Final, NamedTuple
from uuid import UUID

from devices import credentials

FCM_PAYLOAD_LIMIT: Final = 4096
"""The largest size of an FCM message's data, in bytes of all keys and values (Firebase: "About FCM messages")."""

LEAST_TTL_SECONDS: Final = 1
"""The shortest time to live of a push, in seconds. FCM's time to live is a whole number of seconds.

If less than one second is left until the command expires, no push is sent. Such a push could reach FCM after the
command has expired.
"""

_SIGNATURE_LENGTH: Final = 64


@dataclass(frozen=True)
class Content:
    """The content of an envelope, without the signature. All phones of a command get the same content.

    `params` is the JSON text of the parameters.
    """

    request_id: UUID
    action: str
    params: str
    issued_at: datetime
    expires_at: datetime

    @cached_property
    def fields(self) -> Mapping[str, str]:
        """The strings of the envelope without the signature, in the order of the signed text."""
        return {
            "request_id": str(self.request_id),
            "action": self.action,
            "params": self.params,
            "issued_at": whole_seconds(self.issued_at),
            "expires_at": whole_seconds(self.expires_at),
        }


class Recipient(NamedTuple):
    """The phone that an envelope is for, and the command key that signs the envelope.

    `device_id` is in lower case. `generation` and `command_key_id` select the command key.
    """

    device_id: str
    generation: int
    command_key_id: str


def seal(content: Content, to: Recipient) -> dict[str, str]:
    """Return the envelope: the strings of `content`, and the signature.

    The signature is an HMAC-SHA256 as lower-case hex. The key of the HMAC is the text of the device's command key. The
    signed text consists of `NXC1`, device id, request_id, action, params, issued_at and expires_at, joined by LF.
    """
    key = credentials.command_key(to.device_id, to.generation, to.command_key_id)
    message = "\n".join(("NXC1", to.device_id, *content.fields.values()))
    return {**content.fields, "signature": hmac.digest(key.encode(), message.encode(), "sha256").hex()}


def size(content: Content) -> int:
    """Return the size of the envelope in an FCM message, in bytes: all keys and values in UTF-8."""
    fields = {**content.fields, "signature": "0" * _SIGNATURE_LENGTH}
    return sum(len(key) + len(value.encode()) for key, value in fields.items())


@lru_cache(maxsize=1024)
def whole_seconds(moment: datetime) -> str:
    """Return a time in the form of the envelope, such as `2026-01-31T12:00:00Z`. Fractions of a second are cut off."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
