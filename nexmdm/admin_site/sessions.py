"""Sessions of the admin site. The database contains only the SHA-256 of a session key, so it reveals no cookie.

This module has only synchronous methods, because the admin site has no asynchronous views.
"""

from hashlib import sha256
from typing import Any

from django.contrib.sessions.backends import db
from django.contrib.sessions.base_session import AbstractBaseSession
from django.contrib.sessions.models import Session
from django.db.models.functions import Now

_LENGTH = 40
"""The number of hex digits of the digest that fit into Django's column: 160 bits."""


class SessionStore(db.SessionStore):
    """Django's sessions in the database, under another name than the cookie's."""

    def load(self) -> dict[str, Any]:
        """Return the content of the session; an empty dict if the session has ended or does not exist."""
        kept = Session.objects.filter(session_key=_kept(self.session_key or ""), expire_date__gt=Now()).first()
        if kept is None:
            self._session_key = None
            return {}
        return self.decode(kept.session_data)

    def exists(self, session_key: str) -> bool:
        """Return whether a session with this key exists."""
        return super().exists(_kept(session_key))

    def create_model_instance(self, data: dict[str, Any]) -> AbstractBaseSession:
        """Return the row of the session, to be saved."""
        row = super().create_model_instance(data)
        row.session_key = _kept(row.session_key)
        return row

    def delete(self, session_key: str | None = None) -> None:
        """Delete the session with this key, or by default this session."""
        ended = session_key or self.session_key
        if ended is not None:
            super().delete(_kept(ended))


def _kept(session_key: str) -> str:
    return sha256(session_key.encode()).hexdigest()[:_LENGTH]
