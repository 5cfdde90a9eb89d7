"""The secrets of webhooks and the signatures of their requests (the Standard Webhooks specification, version 1).

A secret is derived from SECRET_KEY, the id of the webhook and the number of the secret. No secret is stored. The row of
the webhook names the SECRET_KEY, so a secret stays the same when this key becomes one of SECRET_KEY_FALLBACKS.
"""

import base64
import hmac
from collections.abc import Sequence
from datetime import timedelta
from typing import Final
from uuid import UUID

from devices import tokens
from nexmdm.models import Webhook

PREFIX: Final = "whsec_"

PREVIOUS_SIGNS: Final = timedelta(hours=24)
"""The time after a rotation in which requests are signed with the previous secret too."""


class SecretLost(Exception):
    """The SECRET_KEY from which a secret is derived is not configured any more."""


def current_key_id() -> str:
    """Return the short name of the SECRET_KEY from which new secrets are derived."""
    return tokens.webhook_keys()[0].id


def secret_text(webhook: Webhook, number: int) -> str | None:
    """Return the secret with this number, in the form in which receivers configure it.

    Returns None if `number` is not the current or the previous number. Returns None also if the SECRET_KEY of the
    secret is not configured any more.
    """
    keys = {webhook.secret_number: webhook.secret_key, webhook.secret_number - 1: webhook.previous_secret_key}
    try:
        return PREFIX + base64.b64encode(_secret(webhook.id, number, keys.get(number, ""))).decode()
    except SecretLost:
        return None


def signature(secrets: Sequence[bytes], event_id: str, timestamp: int, body: bytes) -> str:
    """Return the value of the header `webhook-signature`, with one signature for each secret."""
    content = b".".join((event_id.encode(), str(timestamp).encode(), body))
    signed = (base64.b64encode(hmac.digest(secret, content, "sha256")).decode() for secret in secrets)
    return " ".join(f"v1,{one}" for one in signed)


def signing_secrets(webhook: Webhook, *, previous: bool) -> list[bytes]:
    """Return the secrets that sign now: the current secret and, if `previous` is true, the previous secret.

    Each secret is derived from a SECRET_KEY. Raises SecretLost if the SECRET_KEY for the current secret is not
    configured any more. If the SECRET_KEY for the previous secret is not configured any more, the previous secret is
    left out.
    """
    secrets = [_secret(webhook.id, webhook.secret_number, webhook.secret_key)]
    if previous and webhook.previous_secret_key in {key.id for key in tokens.webhook_keys()}:
        secrets.append(_secret(webhook.id, webhook.secret_number - 1, webhook.previous_secret_key))
    return secrets


def _secret(webhook_id: UUID, number: int, key_id: str) -> bytes:
    for key in tokens.webhook_keys():
        if key.id == key_id:
            return hmac.digest(key.value, f"{webhook_id}:{number}".encode(), "sha256")
    raise SecretLost
