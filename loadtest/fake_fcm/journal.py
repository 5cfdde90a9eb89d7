"""The journal of the fake FCM, which records each push, and a reader for the file of the journal.

Simulated phones use the reader to get their pushes.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Send:
    """One push that reached the fake FCM, and the answer to this push.

    - `at`: the time of arrival, in Unix time.
    - `monotonic`: the time of arrival on the monotonic clock.
    - `answer`: the word of `WORDS` that describes the answer.
    - `status`: the HTTP status of the answer; None if the push gets no answer.
    - `message_id`: the id that FCM gives to an accepted push; empty if the push was not accepted.
    """

    at: float
    monotonic: float
    push_token: str
    request_id: str
    message: dict[str, Any]
    answer: str
    status: int | None
    message_id: str


class Journal:
    """All pushes in their order of arrival. Every thread may read the journal.

    If `path` is given, the journal also appends each push to this file, as one line of JSON.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._sends: list[Send] = []
        self._changed = threading.Condition()
        self._file = path.open("ab", buffering=0) if path else None

    def __len__(self) -> int:
        return len(self._sends)

    def sends(self, since: int = 0) -> list[Send]:
        """Return the recorded pushes without the first `since` pushes."""
        with self._changed:
            return self._sends[since:]

    def wait_for(
        self, count: int, timeout: float = 10, *, matching: Callable[[Send], bool] = lambda _: True
    ) -> list[Send]:
        """Wait for at least `count` pushes for which `matching` is true. Return all pushes for which it is true.

        A push counts as soon as it has arrived, even if its answer is not sent yet. Raises TimeoutError after `timeout`
        seconds.
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
        """Append a push, and wake the threads that wait in `wait_for`."""
        with self._changed:
            self._sends.append(send)
            self._changed.notify_all()
        if self._file:
            self._file.write(orjson.dumps(send, option=orjson.OPT_APPEND_NEWLINE))

    def clear(self) -> None:
        """Delete all pushes from memory. The file does not change."""
        with self._changed:
            self._sends.clear()

    def close(self) -> None:
        """Close the file. The pushes in memory can still be read."""
        if self._file:
            self._file.close()


class JournalTail:
    """A reader that follows the file of a journal. It returns only pushes that are written after its creation."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._file.seek(0, 2)
        self._rest = b""

    def sends(self) -> list[dict[str, Any]]:
        """Return the pushes that were written since the last call.

        A line that is not complete is returned by a later call.
        """
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        return [orjson.loads(line) for line in lines]

    def close(self) -> None:
        """Close the file."""
        self._file.close()
