"""The ids for `@last`: the last command and the last device of a profile."""

import json
from contextlib import suppress
from typing import Final, Literal

import platformdirs

from nexmdm.client.profiles import private_file

Kind = Literal["command", "device"]

LAST: Final = "@last"


class Memory:
    """The file with the last ids of one profile. On the command line, `@last` stands for such an id.

    Ids of another server are ignored. If the file cannot be written, the ids are not stored.
    """

    def __init__(self, profile: str, url: str) -> None:
        self._path = platformdirs.user_state_path("nexmdm") / f"{profile}.json"
        self._url = url

    def last(self, kind: Kind) -> str | None:
        """Return the last id of a kind, or None."""
        found = self._read().get(kind)
        return found if isinstance(found, str) else None

    def remember(self, named: dict[Kind, str]) -> None:
        """Store ids, by kind. They replace the earlier ids."""
        kept = self._read()
        changed = kept | {str(kind): identifier for kind, identifier in named.items()} | {"url": self._url}
        if named and changed != kept:
            with suppress(OSError):
                private_file.write(self._path, json.dumps(changed) + "\n")

    def _read(self) -> dict[str, object]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) and found.get("url") == self._url else {}
