"""The password hasher of the admin site: Django's PBKDF2, with a limit on the hashes computed at the same time.

A hash takes half a second of processor time. While it is computed, its request has no database connection. Django
calls `encode` for each hash: for a login (of an unknown user too), for a change of the password, and to upgrade an
older hash.
"""

from typing import Final

from django.contrib.auth.hashers import PBKDF2PasswordHasher

from nexmdm.admin_site import turns
from nexmdm.common.overload import hashing

AT_ONCE: Final = 1 if hashing.cores() <= 2 else 2
"""The number of hashes that a process computes at the same time. On two cores, one core stays free for the phones."""

_threads: Final = hashing.threads("password", AT_ONCE)


class PasswordHasher(PBKDF2PasswordHasher):
    """Django's PBKDF2 hasher with the limit; the stored hashes are the same as Django's."""

    def encode(self, password: str, salt: str, iterations: int | None = None) -> str:
        """Hash a password in one of AT_ONCE threads.

        Until the hash is finished, the calling thread has no database connection.
        """
        with turns.given_up():
            return _threads.submit(super().encode, password, salt, iterations).result()
