"""The start-up checks of the settings and of the database.

An operator's settings module may change the settings. These checks see the changed settings. Invalid variables of the
environment are refused earlier (nexmdm/config/environment.py).
"""

import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, Final

import structlog
from django.conf import settings
from django.core.cache import caches
from django.core.cache.backends.db import DatabaseCache
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.filebased import FileBasedCache
from django.core.cache.backends.locmem import LocMemCache
from django.core.checks import ERROR, CheckMessage, Error, Warning  # noqa: A004
from django.core.exceptions import ImproperlyConfigured
from django.db import InterfaceError, NotSupportedError, OperationalError, transaction

from nexmdm.common import database
from nexmdm.common.postgresql import direct, outage
from nexmdm.common.postgresql.errors import safe_message
from nexmdm.config import named_admins
from nexmdm.config.environment import ConfigError, Misconfigured, sound_host, sound_secret

log = structlog.get_logger()

TAG: Final = "nexmdm"
UNCHECKED_CONNECTIONS: Final = "nexmdm.W001"

COMMAND_CONNECTIONS: Final = 3
"""The number of connections that are kept free for management commands, backups and psql."""

_DATABASE_FACTS: Final = """
    SELECT least(
        current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
            - coalesce(current_setting('reserved_connections', true)::int, 0),
        (SELECT nullif(rolconnlimit, -1) FROM pg_roles WHERE rolname = current_user),
        (SELECT nullif(datconnlimit, -1) FROM pg_database WHERE datname = current_database())
    ), current_setting('server_encoding')
"""
"""The query for the number of connections that NexMDM may have, and for the encoding of the database."""

_STATEMENT_POOLING: Final = "statement pooling mode"
"""The part of PgBouncer's error message that shows that transactions are not allowed."""

_ENCODING: Final = "UTF8"


def settings_in_force(**_: Any) -> list[CheckMessage]:
    """Check DEBUG, ALLOWED_HOSTS, the secrets and the cache. Return one message for each fault."""
    return [*_debug(), *_hosts(), *_secrets(), *_cache()]


def metrics_folder(**_: Any) -> list[CheckMessage]:
    """Check that PROMETHEUS_MULTIPROC_DIR is set if there are several web workers."""
    several = settings.WEB_WORKERS > 1 or multiprocessing.parent_process() is not None
    if settings.PROMETHEUS_MULTIPROC_DIR or not several:
        return []
    return [
        Error(
            "PROMETHEUS_MULTIPROC_DIR is not set. /metrics would show the figures of only one web worker.",
            hint=(
                "Set PROMETHEUS_MULTIPROC_DIR to an empty folder that all web workers use. `manage.py serve` creates "
                "such a folder itself."
            ),
            id=ConfigError.METRICS_FOLDER,
        )
    ]


def connections(**_: Any) -> list[CheckMessage]:
    """Check the database. Return one message for each fault.

    The database must be new enough, allow transactions, use the encoding UTF8, and allow enough connections. Behind a
    connection pooler, the number of connections is not checked. If the database cannot be reached, the message is a
    warning.
    """
    try:
        with transaction.atomic():
            allowed, encoding = database.row(_DATABASE_FACTS)
            is_pooled = database.is_pooled()
    except NotSupportedError as error:
        return [too_old(error)]
    except (OperationalError, InterfaceError) as error:
        if pooling := statement_pooling(error):
            return [pooling]
        reason = direct.why_unreachable() or safe_message(error)
        hint = "PostgreSQL's max_connections could not be checked. Repair the connection, then check again."
        return [Warning(reason, hint=hint, id=UNCHECKED_CONNECTIONS)]
    finally:
        database.release_connections()
    # Behind a connection pooler, the pooler manages the connections.
    return [*_encoding(encoding), *([] if is_pooled else _room(allowed))]


def too_old(error: Exception) -> CheckMessage:
    """Return a failed check for Django's error about a version of PostgreSQL that Django does not support."""
    hint = "Move the database to a server of a newer version (docs/operations/database.md)."
    return Error(str(error), hint=hint, id=ConfigError.TOO_OLD)


def statement_pooling(error: Exception) -> CheckMessage | None:
    """Return a failed check if `error` shows that the connection pooler allows no transactions.

    Return None for every other error.
    """
    if _STATEMENT_POOLING not in str(error):
        return None
    message = "The pooler in front of PostgreSQL uses pool_mode = statement, which allows no transactions."
    return Error(
        message, hint="Set the pooler's pool_mode to transaction or session.", id=ConfigError.STATEMENT_POOLING
    )


def _encoding(encoding: str) -> Iterator[CheckMessage]:
    if encoding != _ENCODING:
        yield Error(
            f"The database has the encoding {encoding}, which cannot store names and messages in all alphabets.",
            hint="Create a database with ENCODING 'UTF8' and TEMPLATE template0. Move the data to this database.",
            id=ConfigError.ENCODING,
        )


def _room(allowed: int) -> Iterator[CheckMessage]:
    pool, workers = settings.DATABASE_POOL_SIZE, settings.WEB_WORKERS
    # The admin site uses the pools of the web workers.
    needed = workers * pool + pool + 1 + COMMAND_CONNECTIONS
    if needed > allowed:
        yield Error(
            f"PostgreSQL allows {allowed} connections, but NexMDM may need {needed}. Each of the {workers} web "
            f"workers may need {pool}. A dispatcher may need {pool} + 1. Management commands, backups and psql may "
            f"need {COMMAND_CONNECTIONS}.",
            hint=(
                "Lower WEB_WORKERS or DATABASE_POOL_SIZE, or raise PostgreSQL's max_connections or the role's "
                "connection limit."
            ),
            id=ConfigError.CONNECTIONS,
        )


def refuse(found: Iterable[CheckMessage]) -> None:
    """Log the warnings in `found`.

    Raises ImproperlyConfigured if `found` contains errors. The message has one line for each error.
    """
    found = list(found)
    for message in found:
        if message.id == UNCHECKED_CONNECTIONS:
            outage.note_failure(message.msg)
        elif message.level < ERROR:
            log.warning("start.unchecked", id=message.id, detail=message.msg)
    if wrong := [f"({message.id}) {message.msg} {message.hint}" for message in found if message.level >= ERROR]:
        raise ImproperlyConfigured("\n".join(wrong))


def _debug() -> Iterator[CheckMessage]:
    if settings.DEBUG:
        hint = "Set DEBUG to False. With DEBUG, every client that causes an error can see settings and source code."
        yield Error("DEBUG is on.", hint=hint, id=ConfigError.DEBUG)


def _hosts() -> Iterator[CheckMessage]:
    for host in settings.ALLOWED_HOSTS:
        try:
            sound_host("ALLOWED_HOSTS", host)
        except Misconfigured as error:
            yield error.check


def _secrets() -> Iterator[CheckMessage]:
    named = {
        **named_admins.by_variable(named_admins.KEY, settings.NAMED_ADMIN_KEYS),
        **named_admins.by_variable(named_admins.SECRET, settings.NAMED_HMAC_SECRETS),
    }
    secrets = {
        "SECRET_KEY": [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS],
        "ADMIN_KEY": settings.ADMIN_KEYS,
        "HMAC_SECRET": settings.HMAC_SECRETS,
        **named,
        "COMMAND_SIGNING_KEY": settings.COMMAND_SIGNING_KEYS,
        "METRICS_TOKEN": [settings.METRICS_TOKEN] if settings.METRICS_TOKEN else [],
    }
    yield from _unsound(secrets)
    yield from _shared(secrets)
    yield from _repeated(named)


def _unsound(secrets: Mapping[str, Sequence[str]]) -> Iterator[CheckMessage]:
    for name, values in secrets.items():
        for value in values:
            try:
                sound_secret(name, value)
            except Misconfigured as error:
                yield error.check


def _shared(secrets: Mapping[str, Sequence[str]]) -> Iterator[CheckMessage]:
    for (one, values), (other, others) in combinations(secrets.items(), 2):
        if set(values) & set(others):
            message = f"{one} and {other} contain the same value. Previous values count too."
            yield Error(message, hint="Give each secret a different value.", id=ConfigError.SHARED)


def _repeated(secrets: Mapping[str, Sequence[str]]) -> Iterator[CheckMessage]:
    """Yield an error for each secret whose values are not all different, such as its current and its previous value."""
    for name, values in secrets.items():
        if len(set(values)) < len(values):
            message = f"{name} and {name}_PREVIOUS contain the same value, so the secret was not changed."
            yield Error(
                message,
                hint="Create a new value, and keep only the old value as the previous value.",
                id=ConfigError.SHARED,
            )


def _cache() -> Iterator[CheckMessage]:
    if isinstance(caches["default"], LocMemCache | DummyCache | FileBasedCache | DatabaseCache):
        kind = type(caches["default"]).__name__
        yield Error(
            f"The default cache is a {kind}, which does not count exactly across processes. Rate limits would not "
            "work.",
            hint="Use the value of CACHES in nexmdm/settings.py.",
            id=ConfigError.CACHE,
        )
