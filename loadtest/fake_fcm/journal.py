"""The journal of the fake FCM, and a reader of its file, by which the simulated phones get their pushes."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Send:
    """One send as it arrived, and the answer chosen for it: a word of `WORDS`."""

    at: float
    monotonic: float
    push_token: str
    request_id: str
    message: dict[str, Any]
    answer: str
    status: int | None
    message_id: str


class Journal:
    """All send requests in the order of arrival, readable from any thread, and written to a file if one is named."""

    def __init__(self, path: Path | None = None) -> None:
        self._sends: list[Send] = []
        self._changed = threading.Condition()
        self._file = path.open("ab", buffering=0) if path else None

    def __len__(self) -> int:
        return len(self._sends)

    def sends(self, since: int = 0) -> list[Send]:
        """Return the sends that have arrived, except the first `since` of them."""
        with self._changed:
            return self._sends[since:]

    def wait_for(
        self, count: int, timeout: float = 10, *, matching: Callable[[Send], bool] = lambda _: True
    ) -> list[Send]:
        """Block until this number of sends has arrived, and return all sends that have arrived. Raises TimeoutError.

        A send counts from its arrival on, which may be before its answer is sent.
        """
        found: list[Send] = []
        read = 0

        def enough() -> bool:
            nonlocal read
            found.extend(filter(matching, self._sends[read:]))
            read = len(self._sends)
            return len(found) >= count

        with self._changed:
            if not self._changed.wait_for(enough, timeout):
                raise TimeoutError(f"{len(found)} of {count} sends came within {timeout} s")
        return found

    def add(self, send: Send) -> None:
        """Append a send and wake the waiting threads."""
        with self._changed:
            self._sends.append(send)
            self._changed.notify_all()
        if self._file:
            self._file.write(orjson.dumps(send, option=orjson.OPT_APPEND_NEWLINE))

    def clear(self) -> None:
        """Delete all sends from memory. The file, if there is one, does not change."""
        with self._changed:
            self._sends.clear()

    def close(self) -> None:
        """Close the file. The sends stay readable."""
        if self._file:
            self._file.close()


class JournalTail:
    """Returns the sends since its last read; the first read begins at the creation of this object. A read costs one
    read of the file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._file.seek(0, 2)
        self._rest = b""

    def sends(self) -> list[dict[str, Any]]:
        """Return the new sends; an incomplete line comes with the next read."""
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        return [orjson.loads(line) for line in lines]

    def close(self) -> None:
        """Close the file."""
        self._file.close()
