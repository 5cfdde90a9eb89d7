#!/usr/bin/env python
"""Run a management command. If it needs a database and the embedded PostgreSQL is used, first start that PostgreSQL."""

import os
import sys
from typing import Final

try:
    import django
    from django.conf import settings
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line, get_commands
    from django.db import OperationalError

    from nexmdm.common.postgresql import direct
    from nexmdm.standalone import embedded_postgres
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] in ("commands", "devices", "nexmdm"):
        raise
    sys.exit(
        f"{sys.executable} has no {missing.name}, because it is not the Python of NexMDM's environment. To create "
        "this environment, run `make install`. Then run .venv/bin/python manage.py instead."
    )

WRONG_USAGE: Final = 2
"""The exit status of `fleet` if it cannot begin."""

WITHOUT_DATABASE: Final = {
    "check", "collectstatic", "compilemessages", "conformance", "diffsettings", "findstatic", "fleet", "licenses",
    "makemessages", "optimizemigration", "postgres", "sendtestemail", "serve", "simulate", "startapp", "startproject",
}  # fmt: skip


def main() -> None:
    """Run the command line. Without a valid configuration or a reachable database, print one line and end."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "nexmdm.settings")
    try:
        _prepare(sys.argv[1:])
        execute_from_command_line(sys.argv)
    except (ImproperlyConfigured, embedded_postgres.EmbeddedError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(WRONG_USAGE if sys.argv[1:2] == ["fleet"] else 1)
    except OperationalError:
        reason = None if "--traceback" in sys.argv else direct.why_unreachable()
        if reason is None:
            raise
        sys.exit(reason)


def _prepare(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("help", "version") or {"-h", "--help", "--version"} & set(arguments):
        return
    django.setup()
    if settings.EMBEDDED and arguments[0] in get_commands() and arguments[0] not in WITHOUT_DATABASE:
        _start_database()


def _start_database() -> None:
    if embedded_postgres.start(settings.DATA_DIR):
        sys.stderr.write("Started the embedded PostgreSQL. To stop PostgreSQL, run `manage.py postgres stop`.\n")


if __name__ == "__main__":
    main()
