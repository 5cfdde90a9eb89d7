"""Signed writes that share a transaction. A group commit carries out all writes that wait at the same moment.

Each write has its own answer and its own audit entry. Each write counts separately for the rate limit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from nexmdm.auth import signed_write
from nexmdm.auth.signed_write import Outcome, Replay, SignedCaller, WriteResult
from nexmdm.common.group_commit import GroupCommit
from nexmdm.common.overload.per_loop import PerLoop

BATCH: Final = 100
WAITING_LIMIT: Final = 2000

Asked = TypeVar("Asked")


class Alone(Exception):
    """The write would have to wait for another transaction. Nothing was done. Carry out the write in a separate
    transaction.
    """


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[Asked]):
    caller: SignedCaller
    asked: Asked

    def merge(self, later: "_Waiting[Asked]") -> bool:  # noqa: ARG002
        """Return False: a repeated write waits for a later batch, and gets the stored answer there."""
        return False

    def log_fields(self) -> dict[str, str]:
        return {"principal": self.caller.principal, "correlation_id": self.caller.correlation_id}

    def is_wanted(self) -> bool:
        """Return True: a write is carried out even if its client has disconnected."""
        return True


class SharedWrites(Generic[Asked]):
    """Writes of one kind. `work` carries out several writes in the transaction of its caller, and returns their
    results.

    If `work` returns an error for a write, `work` must not have changed anything for this write.
    """

    def __init__(self, work: Callable[[Sequence[Asked]], Sequence[WriteResult[Any] | Exception]]) -> None:
        self._work = work
        self._batchers: PerLoop[GroupCommit[_Waiting[Asked], WriteResult[Any] | Replay]] = PerLoop(
            lambda: GroupCommit(self._flush, _flushed, batch_size=BATCH, waiting_limit=WAITING_LIMIT)
        )

    async def run(self, caller: SignedCaller, asked: Asked) -> WriteResult[Any] | Replay:
        """Carry out one write once, by the rules of SignedCaller.run().

        Return the result. If the write is a repeat, return the stored answer. Raises Alone, Overloaded, Draining, and
        the errors of SignedCaller.run().
        """
        key = f"{caller.principal}:{caller.idempotency_key}"
        outcome = await self._batchers.get().submit(key, _Waiting(caller, asked))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def drain(self) -> None:
        """Accept no more writes. Return when all accepted writes are answered."""
        await self._batchers.get().drain()

    def _flush(self, writes: Sequence[_Waiting[Asked]]) -> list[Outcome]:
        """Count all writes for the rate limit, and carry out the writes within the limit.

        The connection may be lost after the transaction began. The outcome of the batch is then unknown, and the batch
        must not run again. GroupCommit flushes a batch again only if the thread has no open connection. Here, the
        thread has one, because Django connects again when it ends the lost transaction. So GroupCommit returns the
        error.
        """
        outcomes: list[Any] = list(signed_write.check_limits([write.caller for write in writes]))
        allowed = [position for position, limited in enumerate(outcomes) if limited is None]
        done = self._do([writes[position] for position in allowed]) if allowed else []
        for position, outcome in zip(allowed, done, strict=True):
            outcomes[position] = outcome
        return outcomes

    def _do(self, writes: Sequence[_Waiting[Asked]]) -> list[Outcome]:
        def work(positions: Sequence[int]) -> Sequence[WriteResult[Any] | Exception]:
            return self._work([writes[position].asked for position in positions])

        return signed_write.run_together([write.caller for write in writes], work)


def _flushed(outcomes: Sequence[Any], seconds: float) -> None:
    """Do nothing: the metrics of admin requests are recorded with their answers."""
