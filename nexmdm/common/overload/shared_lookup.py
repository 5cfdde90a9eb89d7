"""A look-up that any client may cause without a credential. All clients of a process share one run of the look-up."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")


class SharedLookup(Generic[T]):
    """Runs `look` once for all clients that ask while `look` runs. The outcome or error of `look` is kept for
    `fresh_seconds`.
    """

    def __init__(self, look: Callable[[], Awaitable[T]], *, fresh_seconds: float = 0) -> None:
        self._look = look
        self._fresh_seconds = fresh_seconds
        self._running: WeakKeyDictionary[asyncio.AbstractEventLoop, _Run[T]] = WeakKeyDictionary()

    async def outcome(self, within_seconds: float | None = None) -> T:
        """Return the outcome of the look-up, or raise its error.

        Raises TimeoutError if the look-up has run for longer than `within_seconds`. The look-up then continues. The
        next look-up begins only after the end of this look-up.
        """
        loop = asyncio.get_running_loop()
        run = self._running.get(loop)
        if run is None or run.is_over(loop.time() - self._fresh_seconds):
            run = self._running[loop] = _Run(loop, self._look)
        left = None if within_seconds is None else max(0.0, run.began + within_seconds - loop.time())
        await asyncio.wait([run.task], timeout=left)
        if not run.task.done():
            raise TimeoutError
        return run.task.result()


class _Run(Generic[T]):
    """One run of a look-up."""

    def __init__(self, loop: asyncio.AbstractEventLoop, look: Callable[[], Awaitable[T]]) -> None:
        self.began = loop.time()
        self._ended: float | None = None
        self.task = loop.create_task(self._run(look))
        self.task.add_done_callback(self._note_end)

    async def _run(self, look: Callable[[], Awaitable[T]]) -> T:
        return await look()

    def _note_end(self, task: asyncio.Task[T]) -> None:
        self._ended = task.get_loop().time()
        if not task.cancelled():
            task.exception()  # Every waiting caller gets the error. If no caller waits, asyncio must not report it.

    def is_over(self, before: float) -> bool:
        """Return whether the run ended at or before the time `before`."""
        return self._ended is not None and self._ended <= before
