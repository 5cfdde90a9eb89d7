"""Files and processes of programs that refuse to run as root. Under root, they get PostgreSQL's account."""

import os
import subprocess
from pathlib import Path
from typing import Any

from nexmdm.standalone import postgres_account


def prepare(folder: Path, *programs: Path) -> None:
    """Make a folder, and give the account that will use it access to the folder and to these programs."""
    account = postgres_account.account_for(folder)
    postgres_account.give(folder, account)
    for path in (folder / "any", *programs):
        postgres_account.admit(account, path)


def write(path: Path, text: str) -> None:
    """Write a file that only its folder's owner, and root, can read."""
    path.touch(mode=0o600)
    path.write_text(text)
    if (account := postgres_account.account_for(path.parent)) is not None:
        os.chown(path, account.uid, account.gid)


def subprocess_arguments(folder: Path) -> dict[str, Any]:
    """Return the arguments that make a subprocess run in a folder, as its owner, with no input and no terminal."""
    account = postgres_account.account_for(folder)
    identity = {"user": account.uid, "group": account.gid, "extra_groups": []} if account else {}
    return {
        "cwd": folder,
        "env": {"PATH": os.defpath, "LC_ALL": "C"},
        "stdin": subprocess.DEVNULL,
        "start_new_session": True,
        **identity,
    }
