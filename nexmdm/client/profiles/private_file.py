"""Files that only their owner can read, written whole or not at all."""

import os
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Write a file with mode 0600, in a folder with mode 0700 if it is new. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
