"""Files that only their owner can read."""

import os
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Write a file with the mode 0600. A new folder gets the mode 0700.

    An interrupted write does not change the file. Raises OSError.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
