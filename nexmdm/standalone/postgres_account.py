"""The account that runs programs which refuse to run as root, and its access to their folders."""

import os
import pwd
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CANDIDATES: Final = ("postgres", "nobody")


class CannotDelegateError(RuntimeError):
    """An unprivileged account cannot do the work; the message contains the remedy."""


@dataclass(frozen=True)
class Account:
    """An account that is not root."""

    name: str
    uid: int
    gid: int


def account_for(folder: Path) -> Account | None:
    """Return the account for a program that works in `folder`; None if this process does not run as root.

    If the folder's owner is not root, the owner is the account, so that the owner can continue to use the folder.
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
    """Make this account the owner of `folder` and all its content, and remove the access of all others."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if account is None or folder.stat().st_uid == account.uid:
        return
    try:
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, account.uid, account.gid, follow_symlinks=False)
    except OSError as error:
        raise CannotDelegateError(f"{folder} cannot be given to {account.name}: {error.strerror}.") from error


def admit(account: Account | None, path: Path) -> None:
    """Give the account access to `path`: add the execute bit to root's folders above it, and print each change.

    Folders of other owners are not changed: if one of them blocks the way, CannotDelegateError names it.
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
