"""The OAuth access tokens of the fake FCM."""

import secrets
import time
from functools import cache
from typing import Final

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

GRANT_TYPE: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
GOOGLE_AUDIENCE: Final = "https://oauth2.googleapis.com/token"
"""The audience that google-auth writes into its assertions. It does not depend on the account's `token_uri`."""


@cache
def private_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


class AccessTokens:
    """The access tokens that the fake FCM has issued.

    A client gets an access token for an assertion that is signed with the service account's key.
    """

    def __init__(self, client_email: str, audience: str) -> None:
        self._client_email = client_email
        self._audiences = [audience, GOOGLE_AUDIENCE]
        self._expiries: dict[str, float] = {}
        self.issued = 0

    def exchange(self, assertion: str, expires_in_seconds: int) -> str:
        """Return a new access token, which is valid for `expires_in_seconds`.

        Raises jwt.InvalidTokenError if the assertion is not valid.
        """
        jwt.decode(
            assertion,
            private_key().public_key(),
            algorithms=["RS256"],
            audience=self._audiences,
            issuer=self._client_email,
            options={"require": ["exp", "iat"]},
        )
        token = f"ya29.{secrets.token_urlsafe(48)}"
        self._expiries[token] = time.monotonic() + expires_in_seconds
        self.issued += 1
        return token

    def accepts(self, authorization: str) -> bool:
        """Return whether an `Authorization` header contains a valid access token.

        An access token is valid if it was issued here, is not revoked and has not expired.
        """
        expires_at = self._expiries.get(authorization.removeprefix("Bearer "))
        return authorization.startswith("Bearer ") and expires_at is not None and time.monotonic() < expires_at

    def live(self) -> list[str]:
        """Return the access tokens that are not revoked. The list can contain expired tokens."""
        return list(self._expiries)

    def revoke_all(self) -> None:
        """Revoke all access tokens. The fake FCM answers 401 to a push with a revoked token."""
        self._expiries.clear()
