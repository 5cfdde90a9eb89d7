"""The account that runs PostgreSQL, if NexMDM runs as root.

PostgreSQL refuses to run as root. The account also needs access to the folders of PostgreSQL.
"""

import os
import pwd
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CANDIDATES: Final = ("postgres", "nobody")


class CannotDelegateError(RuntimeError):
    """No other account than root can run PostgreSQL here. The message contains the remedy."""


@dataclass(frozen=True)
class Account:
    """An account of the operating system. `uid` is never 0."""

    name: str
    uid: int
    gid: int


def account_for(folder: Path) -> Account | None:
    """Return the account that must run a program which works in `folder`.

    The account is the owner of the folder. If the owner is root, the account is `postgres` or `nobody`. Return None if
    this process does not run as root. Raises CannotDelegateError if neither account exists.
    """
    if os.geteuid() != 0:
        return None
    owner = folder.stat().st_uid if folder.exists() else 0
    if owner:
        return _owner(folder)
    for name in _CANDIDATES:
        if entry := _lookup(name):
            return Account(name, entry.pw_uid, entry.pw_gid)
    raise CannotDelegateError(
        "PostgreSQL refuses to run as root, and this machine has no account for PostgreSQL. To add an account, run: "
        "useradd postgres."
    )


def give(folder: Path, account: Account | None) -> None:
    """Create `folder` with the mode 0700 if it does not exist, and give it with all its content to `account`.

    If `account` is None, the owner stays the same. Raises CannotDelegateError if the owner cannot be changed.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    if account is None or folder.stat().st_uid == account.uid:
        return
    try:
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, account.uid, account.gid, follow_symlinks=False)
    except OSError as error:
        raise CannotDelegateError(f"{folder} cannot be given to {account.name}: {error.strerror}.") from error


def admit(account: Account | None, path: Path) -> None:
    """Let the account reach `path`: add the execute bit to the folders above it that belong to root.

    Print each change. If `account` is None, do nothing. Raises CannotDelegateError if a folder of another owner is
    closed to the account.
    """
    if account is None:
        return
    for folder in reversed(path.resolve().parents):
        if not _passable(folder.stat(), account):
            _open(folder, account)


def _lookup(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _owner(folder: Path) -> Account:
    status = folder.stat()
    try:
        name = pwd.getpwuid(status.st_uid).pw_name
    except KeyError:
        name = str(status.st_uid)
    return Account(name, status.st_uid, status.st_gid)


def _passable(status: os.stat_result, account: Account) -> bool:
    if status.st_uid == account.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == account.gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def _open(folder: Path, account: Account) -> None:
    status = folder.stat()
    bit = stat.S_IXGRP if status.st_gid == account.gid else stat.S_IXOTH
    if status.st_uid != 0:
        raise CannotDelegateError(
            f"The account {account.name}, which runs PostgreSQL instead of root, cannot enter {folder}. Run this "
            "command as the folder's owner. Or move the checkout and NEXMDM_DATA_DIR to a folder that other accounts "
            "can enter."
        )
    try:
        folder.chmod(stat.S_IMODE(status.st_mode) | bit)
    except OSError as error:
        raise CannotDelegateError(f"The account {account.name} cannot enter {folder}: {error.strerror}.") from error
    sys.stderr.write(f"Set an execute bit on {folder}, because {account.name} runs PostgreSQL instead of root.\n")
