"""The password hasher of the admin site: PBKDF2, with a limit on hashes at the same time.

A hash takes half a second of processor time. During this time, the login has no database connection. Django computes a
hash for each login, even of an unknown user. Django also computes hashes to change a password and to upgrade an older
hash.
"""

from typing import Final

from django.contrib.auth.hashers import PBKDF2PasswordHasher

from nexmdm.admin_site import turns
from nexmdm.common.overload import hashing

AT_ONCE: Final = 1 if hashing.cores() <= 2 else 2
"""The number of hashes that a process computes at the same time.

On a machine with two cores, one core stays free for the requests of phones.
"""

_threads: Final = hashing.threads("password", AT_ONCE)


class PasswordHasher(PBKDF2PasswordHasher):
    """Django's PBKDF2 hasher with a limit. The stored hashes have the same form as Django's hashes."""

    def encode(self, password: str, salt: str, iterations: int | None = None) -> str:
        """Return the hash of a password.

        At most AT_ONCE hashes are computed at the same time. Until the hash is ready, the calling thread waits without
        a database connection.
        """
        with turns.given_up():
            return _threads.submit(super().encode, password, salt, iterations).result()
