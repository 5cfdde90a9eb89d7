"""How passwords of the admin site are hashed: Django's way, but few at once, and holding nothing meanwhile.

A hash takes half a second of a processor. All of Django's ways to one lead through `encode`: a login, also of an
unknown user, a change of the password, and the upgrade of an older hash.
"""

from typing import Final

from django.contrib.auth.hashers import PBKDF2PasswordHasher

from nexmdm.admin_site import turns
from nexmdm.common.overload import hashing

AT_ONCE: Final = 1 if hashing.cores() <= 2 else 2
"""How many hashes a process computes at the same time: on a small machine, the other core is the control loop's."""

_threads: Final = hashing.threads("password", AT_ONCE)


class PasswordHasher(PBKDF2PasswordHasher):
    """Django's hasher by PBKDF2, whose hashes it reads and writes."""

    def encode(self, password: str, salt: str, iterations: int | None = None) -> str:
        """Hash a password in a thread of the few; the calling thread has no connection meanwhile."""
        with turns.given_up():
            return _threads.submit(super().encode, password, salt, iterations).result()
