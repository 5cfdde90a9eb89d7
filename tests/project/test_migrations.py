"""Migrations work with and without data, delay no request, and let the version before continue to work."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection, connections
from django.db.migrations.loader import MigrationLoader
from psycopg import sql
from pytest_django import DjangoDbBlocker

from nexmdm.audit import chain
from nexmdm.common.postgresql import direct
from nexmdm.management.commands import migrate
from nexmdm.models import AuditEntry, AuditMark
from tests.support import migration_rules

APPS: Final = ("devices", "commands", "nexmdm")
ROWS: Final = (Path(__file__).parent / "rows_of_0_1_0.sql").read_text()
WORK: Final = (Path(__file__).parent / "work_of_0_1_0.sql").read_text()
KEPT: Final = {"devices_enrollmenttoken", "devices_device", "devices_presence", "nexmdm_auditentry"}
TABLES: Final = re.findall(r"INSERT INTO (\w+)", ROWS)

Migrate = Callable[..., None]


@pytest.fixture
def scratch(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[psycopg.Connection]:
    """An empty database, known to Django under the name "scratch", and a connection to it."""
    parameters = direct.parameters()
    name = sql.Identifier("scratch")
    with psycopg.connect(**parameters | {"dbname": "postgres"}, autocommit=True) as server:
        server.execute("SET statement_timeout = 0")
        server.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
        server.execute(sql.SQL("CREATE DATABASE {}").format(name))
        connections.settings["scratch"] = {**connections.settings["default"], "NAME": "scratch"}
        try:
            with django_db_blocker.unblock(), psycopg.connect(**parameters | {"dbname": "scratch"}) as scratch:
                yield scratch
        finally:
            used: Any = connections["scratch"]
            used.close()
            used.close_pool()
            del connections["scratch"], connections.settings["scratch"]
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


def migrated(*target: str) -> None:
    call_command("migrate", *target, database="scratch", verbosity=0)


def insert_rows(scratch: psycopg.Connection, number: int) -> None:
    """Do what version 0.1.0 does, after any migration."""
    scratch.execute(ROWS.replace("{n}", str(number)).encode())
    scratch.commit()


def work_on(scratch: psycopg.Connection, number: int) -> None:
    """Do what version 0.1.0 does to such rows in their lifetime. This includes their deletion, if it deletes them."""
    for statement in WORK.replace("{n}", str(number)).strip().removesuffix(";").split(";\n"):
        assert scratch.execute(statement.encode()).rowcount == 1, statement
    scratch.commit()


def counts(scratch: psycopg.Connection) -> dict[str, int]:
    counting = sql.SQL("SELECT count(*) FROM {}")
    found = {table: scratch.execute(counting.format(sql.Identifier(table))).fetchone() for table in TABLES}
    scratch.commit()
    return {table: row[0] for table, row in found.items() if row}


def initial(app: str) -> str:
    return str(MigrationLoader(None).graph.root_nodes(app)[0][1])


def previous(app: str) -> str:
    graph = MigrationLoader(None).graph
    (newest,) = graph.leaf_nodes(app)
    before = [parent.key for parent in graph.node_map[newest].parents if parent.key[0] == app]
    return str(before[0][1] if before else newest[1])


def test_an_empty_database_gets_all_migrations(scratch: psycopg.Connection) -> None:
    migrated()
    assert counts(scratch) == dict.fromkeys(TABLES, 0)
    migrated("--check")


@pytest.mark.parametrize("start", [initial, previous])
def test_a_database_in_use_keeps_its_rows_and_accepts_the_writes_of_the_version_before(
    scratch: psycopg.Connection, start: Callable[[str], str]
) -> None:
    for app in APPS:
        migrated(app, start(app))
    insert_rows(scratch, 1)
    for app in APPS:
        migrated(app)
    assert counts(scratch) == dict.fromkeys(TABLES, 1)
    insert_rows(scratch, 2)
    assert counts(scratch) == dict.fromkeys(TABLES, 2)
    for number in (1, 2):
        work_on(scratch, number)
    assert counts(scratch) == {table: 2 if table in KEPT else 0 for table in TABLES}


def add_audit_entry(scratch: psycopg.Connection, entry_id: int) -> None:
    """Insert an entry as version 0.1.0 does."""
    columns = "id, at, principal, address, method, path, body_sha256, status, code, request_id, correlation_id"
    values = "'2026-01-01T00:00:00.000001Z', 'admin', '192.0.2.1', 'POST', '/admin/command', 'ab', 200, ''"
    insert = f"INSERT INTO nexmdm_auditentry ({columns}) VALUES ({entry_id}, {values}, gen_random_uuid(), 'before')"  # noqa: S608
    scratch.execute(insert.encode())
    scratch.commit()


def test_audit_entries_from_before_the_chain_are_carried_over_in_their_order(scratch: psycopg.Connection) -> None:
    migrated("nexmdm", "0002")
    for entry_id in (3, 7, 8):
        add_audit_entry(scratch, entry_id)
    migrated("nexmdm")
    add_audit_entry(scratch, 1)

    place = chain.BEGINNING
    for entry in AuditEntry.objects.using("scratch").order_by("id"):
        assert (entry.previous, entry.hash) == (place.hash, chain.digest(entry))
        place = chain.Place(entry.id, entry.hash)
    assert list(AuditEntry.objects.using("scratch").order_by("id").values_list("id", flat=True)) == [3, 7, 8, 9]
    mark = AuditMark.objects.using("scratch").get(name=AuditMark.NEWEST)
    assert (mark.entry_id, mark.hash) == (place.entry_id, place.hash)


def keys(scratch: psycopg.Connection) -> list[tuple[Any, ...]]:
    """The comparison keys of the devices, the older device first."""
    found = scratch.execute("SELECT hardware_key, alias_key FROM devices_device ORDER BY id").fetchall()
    scratch.commit()
    return found


def test_the_comparison_keys_of_earlier_devices_are_filled_in_by_migrate_and_later_ones_by_the_next(
    scratch: psycopg.Connection,
) -> None:
    for app in APPS:
        migrated(app, initial(app))
    insert_rows(scratch, 1)
    migrated()
    assert keys(scratch) == [("hardware-1", "alias-1")]
    insert_rows(scratch, 2)
    migrated()
    scratch.execute("UPDATE devices_device SET alias = 'Other' WHERE hardware_id = 'hardware-1'")
    scratch.execute("UPDATE devices_device SET alias = NULL WHERE hardware_id = 'hardware-2'")
    assert keys(scratch) == [("hardware-1", None), ("hardware-2", None)]
    migrated()
    assert keys(scratch) == [("hardware-1", "other"), ("hardware-2", None)]


def test_the_comparison_keys_that_are_missing_do_not_wait_for_rows_in_use(scratch: psycopg.Connection) -> None:
    for app in APPS:
        migrated(app, previous(app))
    for number in (1, 2):
        insert_rows(scratch, number)
    scratch.execute("SELECT FROM devices_device WHERE hardware_id = 'hardware-1' FOR UPDATE")
    migrated("devices", previous("devices"))
    scratch.commit()
    assert keys(scratch) == [(None, None), ("hardware-2", "alias-2")]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("app", APPS)
def test_no_migration_locks_for_long_or_breaks_the_version_before(app: str) -> None:
    loader = MigrationLoader(connection, replace_migrations=False)
    wrong = {}
    for key, migration in loader.disk_migrations.items():
        if key[0] == app:
            statements = "\n".join(loader.collect_sql([(migration, False)]))
            wrong[key] = migration_rules.faults(migration.name, statements, atomic=migration.atomic)
    assert len(wrong) >= 1
    assert {key: found for key, found in wrong.items() if found} == {}


@pytest.mark.parametrize(
    "statement",
    [
        'CREATE INDEX "a" ON "t" ("c")',
        'CREATE UNIQUE INDEX "a" ON "t" ("c")',
        'DROP INDEX IF EXISTS "a"',
        "REINDEX TABLE t",
        'ALTER TABLE "t" ADD COLUMN "c" integer NOT NULL',
        'ALTER TABLE "t" ADD COLUMN "c" uuid DEFAULT gen_random_uuid() NOT NULL',
        'ALTER TABLE "t" ADD COLUMN "c" bigint NULL CONSTRAINT "fk" REFERENCES "other"("id")',
        'ALTER TABLE "t" ALTER COLUMN "c" DROP DEFAULT',
        'ALTER TABLE "t" ALTER COLUMN "c" TYPE bigint USING "c"::bigint',
        'ALTER TABLE "t" ALTER COLUMN "c" SET NOT NULL',
        'ALTER TABLE "t" ADD CONSTRAINT "k" CHECK ("c" > 0)',
        'ALTER TABLE "t" ADD CONSTRAINT "k" FOREIGN KEY ("c") REFERENCES "other" ("id") DEFERRABLE',
        'ALTER TABLE "t" ADD CONSTRAINT "k" UNIQUE ("c")',
        'ALTER TABLE "t" RENAME COLUMN "c" TO "d"',
        'ALTER TABLE "t" RENAME TO "u"',
        'ALTER TABLE "t" DROP COLUMN "c" CASCADE',
        'DROP TABLE "t" CASCADE',
        'ALTER TABLE "t" ADD COLUMN "c" integer NULL; UPDATE "t" SET "c" = 1',
        'ALTER TABLE "t" ADD COLUMN "c" integer NULL;\n-- THIS OPERATION CANNOT BE WRITTEN AS SQL\n',
        "-- THIS OPERATION CANNOT BE WRITTEN AS SQL\n",
        'UPDATE "t" SET "c" = 1',
        'DELETE FROM "t"',
        "WITH old AS (SELECT id FROM t) UPDATE t SET c = 1 FROM old WHERE t.id = old.id",
        "INSERT INTO u SELECT * FROM t",
        "DO $$ BEGIN ALTER TABLE t DROP COLUMN c; END $$",
        'ALTER TABLE "t" ADD COLUMN "c" integer NULL; DO $do$ BEGIN UPDATE t SET c = 1; END $do$',
        'ALTER TABLE "t" ADD COLUMN "c" integer NULL; WITH a AS (SELECT 1) UPDATE t SET c = 1 FROM a',
        "LOCK TABLE t IN SHARE MODE",
        'TRUNCATE "t"',
        "ALTER TABLE t SET UNLOGGED",
        'ALTER TABLE "t" ADD CONSTRAINT "k" CHECK ("c" > 0) NOT VALID; ALTER TABLE "t" VALIDATE CONSTRAINT "k"',
        "ALTER TABLE t ADD CONSTRAINT k CHECK (c > 0) NOT VALID, VALIDATE CONSTRAINT k",
        "ALTER TABLE t ALTER c TYPE bigint",
        "ALTER TABLE t ALTER c SET NOT NULL",
        "ALTER TABLE t ADD c integer NOT NULL",
        "ALTER TABLE t ADD c serial",
        "ALTER TABLE t ADD CHECK (c > 0)",
        "ALTER TABLE t DROP c",
        "ALTER TABLE t DROP IF EXISTS c",
        "ALTER TABLE t RENAME c TO d",
        "CREATE FUNCTION f() RETURNS void AS $$ SELECT 1 $$ LANGUAGE sql; DO $$ BEGIN DROP TABLE t; END $$",
    ],
)
def test_sql_that_locks_for_too_long_or_breaks_the_version_before_is_found(statement: str) -> None:
    assert len(migration_rules.faults("0002_change", statement, atomic=True)) == 1


@pytest.mark.parametrize(
    ("name", "statement", "atomic"),
    [
        ("0002_change", 'CREATE TABLE "t" ("c" integer NOT NULL); CREATE INDEX "a" ON "t" ("c")', True),
        ("0002_change", 'CREATE INDEX CONCURRENTLY "a" ON "t" ("c")', False),
        ("0002_change", 'ALTER TABLE "t" ADD COLUMN "c" varchar(8) DEFAULT \'\' NOT NULL', True),
        ("0002_change", 'ALTER TABLE "t" ADD COLUMN "c" integer NULL', True),
        ("0002_change", 'ALTER TABLE "t" ADD CONSTRAINT "k" CHECK ("c" > 0) NOT VALID', True),
        ("0002_change", 'ALTER TABLE "t" VALIDATE CONSTRAINT "k"', True),
        ("0002_change", 'ALTER TABLE "t" ADD CONSTRAINT "k" UNIQUE USING INDEX "a"', True),
        (
            "0002_change",
            "CREATE FUNCTION f() RETURNS void AS $$ DROP TABLE t; UPDATE t SET c = 1 $$",
            True,
        ),
        ("0002_fill", 'UPDATE "t" SET "c" = 1', False),
        ("0002_change", "ALTER TABLE t ALTER c SET DEFAULT 1", True),
        ("0002_change", "ALTER TABLE t ALTER c DROP NOT NULL", True),
        ("0002_change", "ALTER TABLE t DROP CONSTRAINT k", True),
        ("0002_change", "ALTER TABLE t ADD c integer NULL", True),
        ("0002_change", "ALTER TABLE t SET (fillfactor = 50)", True),
        ("0003_contract_t", "ALTER TABLE t DROP c", True),
        ("0003_contract_t", 'ALTER TABLE "t" DROP COLUMN "c"', True),
    ],
)
def test_sql_that_delays_no_request_is_accepted(name: str, statement: str, atomic: bool) -> None:
    assert migration_rules.faults(name, statement, atomic=atomic) == []


@pytest.fixture
def busy(scratch: psycopg.Connection) -> psycopg.Connection:
    """A transaction in the way of the next migration of "devices"; the command waits for it only for a moment."""
    migrated("devices", "0001")
    scratch.execute("LOCK TABLE devices_presence IN SHARE UPDATE EXCLUSIVE MODE")
    return scratch


def test_a_migration_lets_requests_on_its_table_pass_and_tries_again(
    busy: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(migrate, "LOCK_SECONDS", 0.05)
    monkeypatch.setattr("nexmdm.management.commands.migrate.time.sleep", lambda _: busy.rollback())
    migrated("devices")
    assert "A table is in use" in capsys.readouterr().out
    busy.execute("UPDATE devices_presence SET agent_version = ''")
    migrated("devices", "--check")


def test_a_migration_whose_table_is_always_in_use_ends_with_an_error(
    busy: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "LOCK_SECONDS", 0.05)
    monkeypatch.setattr(migrate, "TRIES", 2)
    monkeypatch.setattr("nexmdm.management.commands.migrate.time.sleep", lambda _: None)
    with pytest.raises(CommandError, match="a transaction of another client uses a table"):
        migrated("devices")
