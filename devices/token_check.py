"""The check of device tokens by bcrypt, for tokens whose digest cannot decide.

Checks of tokens and hashes of new credentials have separate gates and threads. So a check never waits for a new
credential, and a new credential never waits for a check.
"""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Final, ParamSpec, TypeVar

from devices import credentials, tokens
from devices.credentials import InvalidToken, NeedsFullCheck, NewSecret
from nexmdm.common.database import run_for_phone
from nexmdm.common.overload import hashing
from nexmdm.common.overload.gates import Gate

P = ParamSpec("P")
R = TypeVar("R")

_THREADS: Final = 2
_AT_ONCE: Final = 2 * _THREADS
"""The largest number of pieces of work that run at the same time. It is higher than the number of threads, because some
work waits for the database.
"""

_WAITING: Final = 200
_SECONDS: Final = 10
"""The longest wait at a gate. A bcrypt hash takes 60 to 80 ms, so two threads finish all waiting checks within this
time.
"""

TOKEN_CHECKS: Final = Gate(
    "token_checks", at_once=_AT_ONCE, at_once_per_key=1, waiting=_WAITING, waiting_per_key=8, seconds=_SECONDS
)
"""The gate for bcrypt checks of device tokens. Its keys are device ids. A phone repeats a heartbeat only a few times,
so eight waiting checks of one device are enough.
"""

NEW_CREDENTIALS: Final = Gate(
    "new_credentials", at_once=_AT_ONCE, at_once_per_key=1, waiting=_WAITING, waiting_per_key=100, seconds=_SECONDS
)
"""The gate for registrations and rotations. Its keys are the ids of enrollment tokens and devices.

With one enrollment token, one registration runs at a time, and 100 more can wait. Many phones may register with one
enrollment token in the same minute: these phones wait, and are not refused. 100 further places are for phones with
other enrollment tokens. These phones do not wait for the first enrollment token.
"""

_checking: Final = hashing.threads("bcrypt-check", _THREADS)
_making: Final = hashing.threads("bcrypt-new", _THREADS)


async def with_token_check(token: tokens.Token, work: Callable[[], Awaitable[R]]) -> R:
    """Await `work()`. If `work()` raises NeedsFullCheck, check the token by check_fully() and await `work()` once more.

    Raises InvalidToken, GateFull, and the errors of `work()`.
    """
    try:
        return await work()
    except NeedsFullCheck:
        await check_fully(token)
    try:
        return await work()
    except NeedsFullCheck as error:
        raise InvalidToken from error


async def check_fully(token: tokens.Token) -> None:
    """Check a token against all valid credentials of its device, and store a new digest of the token.

    If the stored digests cannot show whether the token is valid, the check waits at the gate TOKEN_CHECKS. Raises
    InvalidToken, GateFull.
    """
    needs_bcrypt = False
    for verifier in await run_for_phone(credentials.verifiers, token.id):
        matches = verifier.matches_digest(token)
        if matches:
            await run_for_phone(credentials.rehash, token, verifier)
            return
        needs_bcrypt = needs_bcrypt or matches is None
    if not needs_bcrypt:
        raise InvalidToken
    async with TOKEN_CHECKS.turn(token.id):
        await _check_by_bcrypt(token)


async def _check_by_bcrypt(token: tokens.Token) -> None:
    # Read the credentials again: another check of this device may have rewritten the row during the wait at the gate.
    for verifier in await run_for_phone(credentials.verifiers, token.id):
        matches = verifier.matches_digest(token)
        if matches is None:
            matches = await _run(_checking, verifier.matches_hash, token)
        if matches:
            await run_for_phone(credentials.rehash, token, verifier)
            return
    raise InvalidToken


async def new_secret() -> NewSecret:
    """Create a new secret in a thread. The caller must be inside the gate NEW_CREDENTIALS."""
    return await _run(_making, credentials.new_secret)


async def _run(threads: Executor, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    return await asyncio.get_running_loop().run_in_executor(threads, lambda: work(*args, **kwargs))
