"""Databases that a server under test uses in place of its embedded PostgreSQL."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtest.chaos.faults import Fault, SameProcesses, Say
from loadtest.testbed import pgbouncer
from loadtest.testbed.postgres_servers import PostgresServers

FaultOf = Callable[[SameProcesses, Say], Fault]


@dataclass(frozen=True, slots=True)
class Database:
    """A database for a server under test.

    - `settings`: the settings with which the server uses this database.
    - `url`: the URL from which the run reads the database at its end.
    - `fault`: a function that returns the fault of this database; None: this database causes no fault.
    """

    settings: Mapping[str, str]
    url: str
    fault: FaultOf | None = None


@contextmanager
def servers(folder: Path) -> Iterator[PostgresServers]:
    """Yield a maker of PostgreSQL servers, whose files are in `folder`. All servers stop at the end of the block."""
    with PostgresServers(folder / "postgres") as made:
        yield made


@contextmanager
def pooled(folder: Path) -> Iterator[Database]:
    """Run a PostgreSQL behind a PgBouncer. The PgBouncer pools transactions. Yield this database."""
    with servers(folder) as made:
        server = made.primary("only")
        with pgbouncer.pooling(folder / "pooler", server.url, "transaction") as url:
            yield Database({"DATABASE_URL": url, "DIRECT_DATABASE_URL": server.url}, server.url)
