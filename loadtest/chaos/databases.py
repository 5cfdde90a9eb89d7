"""Our own databases for a server under test, instead of the embedded one."""

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
    """A database: the server's settings for this database, the URL from which the ledgers are read, and its fault, if
    any.
    """

    settings: Mapping[str, str]
    url: str
    fault: FaultOf | None = None


@contextmanager
def servers(folder: Path) -> Iterator[PostgresServers]:
    """Yield PostgreSQL servers in a run's folder; they end with the block."""
    with PostgresServers(folder / "postgres") as made:
        yield made


@contextmanager
def pooled(folder: Path) -> Iterator[Database]:
    """Run a PostgreSQL behind a PgBouncer that pools transactions."""
    with servers(folder) as made:
        server = made.primary("only")
        with pgbouncer.pooling(folder / "pooler", server.url, "transaction") as url:
            yield Database({"DATABASE_URL": url, "DIRECT_DATABASE_URL": server.url}, server.url)
