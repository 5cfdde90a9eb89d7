"""Do a phone's work; where its token's digest cannot decide, settle it (bcrypt, off the loop) and try once more."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

from devices import credentials, tokens
from devices.credentials import InvalidToken, NewSecret, Unsettled
from devices.database import unit

P = ParamSpec("P")
R = TypeVar("R")

MAX_WAITING: Final = 200
"""Bcrypt checks that may wait: at 62 ms each on one core, the last one waits 12 s."""

_executor: Final = ThreadPoolExecutor(max_workers=2, thread_name_prefix="bcrypt")
_waiting = 0


class BcryptBusy(Exception):
    """Too many credentials wait to be checked. Try again shortly."""


async def settled(token: tokens.Token, work: Callable[[], Awaitable[R]]) -> R:
    """Await the work; if the token's digest could not decide, settle it and await the work again.

    Raises what the work raises, InvalidToken, and BcryptBusy.
    """
    try:
        return await work()
    except Unsettled:
        await settle(token)
    try:
        return await work()
    except Unsettled as error:
        raise InvalidToken from error


async def settle(token: tokens.Token) -> None:
    """Check a token against all its device's verifiers, and write its digest anew. Raises InvalidToken, BcryptBusy."""
    for verifier in await unit(credentials.verifiers, token.id):
        if await _in_executor(verifier.matches, token):
            await unit(credentials.settle, token, verifier)
            return
    raise InvalidToken


async def new_secret() -> NewSecret:
    """Make a new secret. Raises BcryptBusy."""
    return await _in_executor(credentials.new_secret)


async def _in_executor(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    global _waiting  # noqa: PLW0603  (one bound for the process, like the executor)
    if _waiting >= MAX_WAITING:
        raise BcryptBusy
    _waiting += 1
    try:
        return await asyncio.get_running_loop().run_in_executor(_executor, lambda: work(*args, **kwargs))
    finally:
        _waiting -= 1
