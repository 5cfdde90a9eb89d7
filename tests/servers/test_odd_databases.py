"""Databases with defaults of their own: what NexMDM sets itself, what the URL adds, and what is refused in one line."""

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
    """The URL of a migrated database whose defaults suit nobody."""
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
    assert first == "['read committed', 'ISO, MDY', '30s', '10s', 'public,pg_temp']", done.stderr
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


@pytest.mark.parametrize("argv", [("check", "--database", "default"), ("dispatch", "--once")])
def test_the_first_line_about_a_database_that_cannot_be_reached_has_its_reason(db: None, argv: tuple[str, ...]) -> None:
    done = run_in_production(MANAGE, *argv, DATABASE_URL=url_of("nowhere"), ALLOWED_HOSTS="localhost")
    assert 'database "nowhere" does not exist' in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
