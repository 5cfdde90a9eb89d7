"""Do the work for a phone.

If the digest of the phone's token cannot decide, check the token by bcrypt and try once more. Checks of tokens, and
hashes of new credentials, have separate gates and threads, so that neither waits for the other.
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
"""More than the number of threads, because some of the work waits for the database."""

_WAITING: Final = 200
_SECONDS: Final = 10
"""A bcrypt hash takes 60 to 80 ms, so two threads finish the waiting checks within this time."""

TOKEN_CHECKS: Final = Gate(
    "token_checks", at_once=_AT_ONCE, at_once_per_key=1, waiting=_WAITING, waiting_per_key=8, seconds=_SECONDS
)
"""The gate for bcrypt checks of device tokens, by device. A phone repeats a heartbeat only a few times."""

NEW_CREDENTIALS: Final = Gate(
    "new_credentials", at_once=_AT_ONCE, at_once_per_key=1, waiting=_WAITING, waiting_per_key=100, seconds=_SECONDS
)
"""The gate for registrations (one at a time for each enrollment token) and rotations (one at a time for each device).

Many phones may register with one enrollment token in the same minute. So they wait instead of being refused. They may
use half of the places, and phones with other tokens overtake them.
"""

_checking: Final = hashing.threads("bcrypt-check", _THREADS)
_making: Final = hashing.threads("bcrypt-new", _THREADS)


async def with_token_check(token: tokens.Token, work: Callable[[], Awaitable[R]]) -> R:
    """Await the work; if the token's digest could not decide, check the token fully and await the work again.

    Raises InvalidToken, GateFull, and the errors of the work.
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
    """Check a token against all verifiers of its device, and write a new digest. Raises InvalidToken, GateFull.

    A digest decides most tokens; only the others go through the gate.
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
    # Read again: an earlier check of the same device may have rewritten the row.
    for verifier in await run_for_phone(credentials.verifiers, token.id):
        matches = verifier.matches_digest(token)
        if matches is None:
            matches = await _run(_checking, verifier.matches_hash, token)
        if matches:
            await run_for_phone(credentials.rehash, token, verifier)
            return
    raise InvalidToken


async def new_secret() -> NewSecret:
    """Create a new secret. Call it only while NEW_CREDENTIALS has let the caller in."""
    return await _run(_making, credentials.new_secret)


async def _run(threads: Executor, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    return await asyncio.get_running_loop().run_in_executor(threads, lambda: work(*args, **kwargs))
