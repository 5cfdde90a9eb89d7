"""Files and processes of programs that refuse to run as root.

If the present user is root, these programs run under the account of PostgreSQL.
"""

import os
import subprocess
from pathlib import Path
from typing import Any

from nexmdm.standalone import postgres_account


def prepare(folder: Path, *programs: Path) -> None:
    """Create a folder. If the present user is root, the folder belongs to the account of PostgreSQL.

    In this case, also let this account run `programs`.
    """
    account = postgres_account.account_for(folder)
    postgres_account.give(folder, account)
    for path in (folder / "any", *programs):
        postgres_account.admit(account, path)


def write(path: Path, text: str) -> None:
    """Write a file that only root and the owner of its folder can read."""
    path.touch(mode=0o600)
    path.write_text(text)
    if (account := postgres_account.account_for(path.parent)) is not None:
        os.chown(path, account.uid, account.gid)


def subprocess_arguments(folder: Path) -> dict[str, Any]:
    """Return the arguments with which a subprocess runs in `folder`, as the owner of `folder`.

    The subprocess gets no input and no terminal.
    """
    account = postgres_account.account_for(folder)
    identity = {"user": account.uid, "group": account.gid, "extra_groups": []} if account else {}
    return {
        "cwd": folder,
        "env": {"PATH": os.defpath, "LC_ALL": "C"},
        "stdin": subprocess.DEVNULL,
        "start_new_session": True,
        **identity,
    }
