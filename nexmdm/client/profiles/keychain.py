"""The secrets in the keyring of the operating system. Each call ends within SECONDS."""

import importlib
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final, TypeVar

T = TypeVar("T")

SECONDS: Final = 10
"""The time limit for each call of the keyring, in seconds.

A locked keyring may ask for a password in a window that the admin cannot see.
"""

_SERVICE: Final = "nexmdm"


class NoKeyring(Exception):
    """The keyring does not exist, failed, or did not answer in time."""


def store(name: str, value: str) -> None:
    """Store a secret. Raises NoKeyring if the secret cannot be stored or cannot be read again."""

    def work() -> bool:
        keyring = _backend()
        keyring.set_password(_SERVICE, name, value)
        return bool(keyring.get_password(_SERVICE, name) == value)

    if not _in_time(work):
        raise NoKeyring("the keyring does not return the stored secret")


def read(name: str) -> str | None:
    """Return a secret, or None if the keyring does not contain it. Raises NoKeyring."""

    def work() -> str | None:
        found: str | None = _backend().get_password(_SERVICE, name)
        return found

    return _in_time(work)


def forget(name: str) -> None:
    """Delete a secret. Raises NoKeyring."""

    def work() -> None:
        keyring = _backend()
        if keyring.get_password(_SERVICE, name) is not None:
            keyring.delete_password(_SERVICE, name)

    _in_time(work)


def _backend() -> Any:
    # Imported here, because the import takes longer than most calls of the client, and few profiles need it.
    backend = importlib.import_module("keyring").get_keyring()
    if backend.priority < 1:
        raise NoKeyring("this machine has no keyring")
    return backend


def _in_time(work: Callable[[], T]) -> T:
    """Return the result of `work`, which runs in a thread.

    Raises NoKeyring after SECONDS. The thread may then still run, and does not prevent the end of the program.
    """
    done: SimpleQueue[tuple[T | None, Exception | None]] = SimpleQueue()

    def run() -> None:
        try:
            done.put((work(), None))
        except Exception as error:  # noqa: BLE001 - each backend has errors of its own
            done.put((None, error))

    Thread(target=run, daemon=True).start()
    try:
        result, error = done.get(timeout=SECONDS)
    except Empty:
        raise NoKeyring(f"the keyring did not answer within {SECONDS} s") from None
    if error is not None:
        raise error if isinstance(error, NoKeyring) else NoKeyring(f"the keyring failed: {error}") from error
    return result  # type: ignore[return-value] # of work that did not fail
