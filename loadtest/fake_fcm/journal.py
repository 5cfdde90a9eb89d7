"""Reads the journal file of the stand-in for FCM while it is written: how pushes reach simulated phones."""

from pathlib import Path
from typing import Any

import orjson


class JournalTail:
    """The sends that have arrived since the last look, from the moment it was made. A look costs one read of a file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._file.seek(0, 2)
        self._rest = b""

    def sends(self) -> list[dict[str, Any]]:
        """Return the sends that are new; a line that is not whole yet comes with the next look."""
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        return [orjson.loads(line) for line in lines]

    def close(self) -> None:
        """Close the file."""
        self._file.close()
