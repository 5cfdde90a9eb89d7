"""The file with the generated secrets of a server with the embedded database. Only its owner can read the file."""

import os
import secrets
from pathlib import Path

NAMES = ("SECRET_KEY", "ADMIN_KEY", "HMAC_SECRET", "COMMAND_SIGNING_KEY")


def load_or_create(path: Path) -> dict[str, str]:
    """Return the secrets in the file `path`, by variable.

    If the file does not exist, create the file and its folder, with new secrets. Processes that start at the same time
    get the same secrets.
    """
    if not path.exists():
        _create(path)
    return _parse(path.read_text(encoding="utf-8"))


def _create(path: Path) -> None:
    path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    text = "".join(f"{name}={secrets.token_urlsafe(48)}\n" for name in NAMES)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    try:
        os.link(draft, path)
    except FileExistsError:
        return
    finally:
        draft.unlink()


def _parse(text: str) -> dict[str, str]:
    lines = (line.partition("=") for line in text.splitlines() if line and not line.startswith("#"))
    return {name.strip(): value.strip() for name, _, value in lines}
