"""The OAuth access tokens of the fake FCM."""

import secrets
import time
from functools import cache
from typing import Final

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

GRANT_TYPE: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
GOOGLE_AUDIENCE: Final = "https://oauth2.googleapis.com/token"
"""The audience that google-auth writes into its assertions, whatever the account's `token_uri` is."""


@cache
def private_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


class AccessTokens:
    """The OAuth side: access tokens in exchange for assertions signed with the service account's key."""

    def __init__(self, client_email: str, audience: str) -> None:
        self._client_email = client_email
        self._audiences = [audience, GOOGLE_AUDIENCE]
        self._expiries: dict[str, float] = {}
        self.issued = 0

    def exchange(self, assertion: str, expires_in_seconds: int) -> str:
        """Return a new access token. Raises jwt.InvalidTokenError for an invalid assertion."""
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
        """Return whether the header has a token that was issued, is not revoked, and has not expired."""
        expires_at = self._expiries.get(authorization.removeprefix("Bearer "))
        return authorization.startswith("Bearer ") and expires_at is not None and time.monotonic() < expires_at

    def live(self) -> list[str]:
        """Return the tokens that are not revoked."""
        return list(self._expiries)

    def revoke_all(self) -> None:
        """Revoke every token: the next send with a revoked token is answered 401."""
        self._expiries.clear()
