"""Databases with other defaults: NexMDM's own settings, the settings of the URL, and errors of one line."""

import re
from collections.abc import Iterator

import psycopg
import pytest
from django.conf import settings as django_settings
from psycopg import sql

from loadtest.testbed.serving import MANAGE
from nexmdm.config.environment import ConfigError
from nexmdm.standalone import embedded_postgres
from tests.servers.test_checks import run_in_production

ODD = ("default_transaction_isolation = serializable", "datestyle = 'SQL, DMY'")

LOOP = """
import nexmdm.asgi
from django.conf import settings
from nexmdm.common import database
from tests.support.actors import Admin, Client
shown = ("transaction_isolation", "datestyle", "statement_timeout", "lock_timeout", "search_path")
print([database.row(f"SHOW {name}")[0] for name in shown])
admin = Admin(Client(), settings.ADMIN_KEYS[0], settings.HMAC_SECRETS[0])
phone = admin.enrol("phone-1", alias="Empfang Süd")
admin.command("ping", to=phone)
(command,) = phone.heartbeat().json["commands"]
print(phone.report(command["request_id"], "succeeded").status)
"""


def url_of(name: str) -> str:
    return embedded_postgres.url(django_settings.DATA_DIR).replace("/nexmdm?", f"/{name}?")


@pytest.fixture
def administrator(db: None) -> Iterator[psycopg.Connection]:
    """A connection that creates databases."""
    with psycopg.connect(url_of("postgres"), autocommit=True) as connection:
        yield connection


@pytest.fixture
def odd(administrator: psycopg.Connection) -> Iterator[str]:
    """The URL of a migrated database whose defaults differ from what NexMDM needs."""
    administrator.execute("CREATE DATABASE odd")
    for default in ODD:
        administrator.execute(sql.SQL("ALTER DATABASE odd SET " + default))
    yield url_of("odd")
    administrator.execute("DROP DATABASE odd WITH (FORCE)")


def test_the_loop_works_on_a_database_with_other_defaults_and_the_urls_options_are_joined_to_ours(odd: str) -> None:
    url = f"{odd}&options=-csearch_path%3Dpublic,pg_temp"
    assert run_in_production(MANAGE, "migrate", DATABASE_URL=url).returncode == 0
    done = run_in_production("-c", LOOP, DATABASE_URL=url, ALLOWED_HOSTS="localhost")
    first, last = done.stdout.splitlines()[0], done.stdout.splitlines()[-1]
    assert first == "['read committed', 'ISO, MDY', '7s', '5s', 'public,pg_temp']", done.stderr
    assert last == "200"


@pytest.fixture
def latin(administrator: psycopg.Connection) -> Iterator[str]:
    """The URL of a database that cannot store every text."""
    administrator.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0")
    yield url_of("latin")
    administrator.execute("DROP DATABASE latin WITH (FORCE)")


@pytest.mark.parametrize("argv", [("-m", "nexmdm.web"), (MANAGE, "dispatch")])
def test_a_database_that_cannot_store_every_text_stops_the_start(latin: str, argv: tuple[str, ...]) -> None:
    done = run_in_production(*argv, DATABASE_URL=latin, ALLOWED_HOSTS="localhost")
    assert done.returncode != 0
    assert f"({ConfigError.ENCODING}) The database has the encoding LATIN1" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


OLD = """
import runpy, sys
from django.db.backends.postgresql.features import DatabaseFeatures
DatabaseFeatures.minimum_database_version = (99,)
module, *arguments = sys.argv[1:]
sys.argv = [module, *arguments]
runpy.run_path(module, run_name="__main__") if module.endswith(".py") else runpy.run_module(module, run_name="__main__")
"""


@pytest.mark.parametrize("argv", [(MANAGE, "migrate"), (MANAGE, "dispatch"), ("nexmdm.web",)])
def test_a_server_that_is_too_old_stops_the_start_in_one_line(db: None, argv: tuple[str, ...]) -> None:
    done = run_in_production("-c", OLD, *argv, ALLOWED_HOSTS="localhost")
    assert done.returncode != 0
    assert re.search(r"PostgreSQL 99 or later is required \(found 1[0-9.]+\)", done.stdout + done.stderr)
    assert "Traceback" not in done.stdout + done.stderr


@pytest.fixture
def closed(administrator: psycopg.Connection) -> Iterator[str]:
    """The URL of a database in which our role may only connect, as in PostgreSQL 15."""
    administrator.execute("CREATE ROLE guest LOGIN")
    administrator.execute("CREATE DATABASE closed")
    yield url_of("closed").replace("//postgres@", "//guest@")
    administrator.execute("DROP DATABASE closed WITH (FORCE)")
    administrator.execute("DROP ROLE guest")


def test_a_role_that_may_not_create_tables_gets_an_error_of_one_line(closed: str) -> None:
    done = run_in_production(MANAGE, "migrate", DATABASE_URL=closed)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "permission denied for schema public" in done.stderr.splitlines()[-1]
    assert "GRANT USAGE, CREATE ON SCHEMA public" in done.stderr.splitlines()[-1]
