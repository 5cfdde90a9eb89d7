"""The sessions of the admin site. The database contains only a hash of each session key.

So a copy of the database contains no valid cookie. The asynchronous methods of Django are not overridden, because the
admin site has no asynchronous views.
"""

from hashlib import sha256
from typing import Any

from django.contrib.sessions.backends import db
from django.contrib.sessions.base_session import AbstractBaseSession
from django.contrib.sessions.models import Session
from django.db.models.functions import Now

_LENGTH = 40
"""The number of hexadecimal digits of the SHA-256 that are stored. Django's column has 40 characters."""


class SessionStore(db.SessionStore):
    """Django's sessions in the database, with the hash of the session key instead of the key."""

    def load(self) -> dict[str, Any]:
        """Return the content of the session. It is empty if the session has ended or does not exist."""
        kept = Session.objects.filter(session_key=_kept(self.session_key or ""), expire_date__gt=Now()).first()
        if kept is None:
            self._session_key = None
            return {}
        return self.decode(kept.session_data)

    def exists(self, session_key: str) -> bool:
        """Return whether a session with this key exists."""
        return super().exists(_kept(session_key))

    def create_model_instance(self, data: dict[str, Any]) -> AbstractBaseSession:
        """Return the unsaved row of the session."""
        row = super().create_model_instance(data)
        row.session_key = _kept(row.session_key)
        return row

    def delete(self, session_key: str | None = None) -> None:
        """Delete the session with this key, or this session if there is no key."""
        ended = session_key or self.session_key
        if ended is not None:
            super().delete(_kept(ended))


def _kept(session_key: str) -> str:
    return sha256(session_key.encode()).hexdigest()[:_LENGTH]
