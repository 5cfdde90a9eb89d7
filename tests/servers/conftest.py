"""A separate PostgreSQL over TCP, for the tests of one module."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.testbed.postgres_servers import PostgresServer, PostgresServers


@pytest.fixture(scope="module")
def server(open_folder: Path) -> Iterator[PostgresServer]:
    """A server that the module's tests may configure, stop and overload."""
    with PostgresServers(open_folder, durable=False) as servers:
        yield servers.primary("one")
