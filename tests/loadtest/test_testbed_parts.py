"""The proxy, the PostgreSQL servers and the pooler that tests break do what their orders say."""

import fcntl
import socket
import struct
import termios
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final, LiteralString

import psycopg
import pytest
from psycopg.errors import ReadOnlySqlTransaction

from loadtest.testbed import machine, pgbouncer
from loadtest.testbed.loopback import LOOPBACK
from loadtest.testbed.postgres_servers import PostgresServer, PostgresServers, url_of
from loadtest.testbed.serving import wait_for
from loadtest.testbed.tcp_proxy import TcpProxy

PATIENCE_SECONDS: Final = 5
MOMENT: Final = 0.05
INSERT: Final = "INSERT INTO number VALUES (%s)"


class Proxied:
    """A proxy, a listening socket behind it, and connections through it."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.listener = self.listening()
        self.proxy = stack.enter_context(TcpProxy(self.listener.getsockname()[1]))

    def listening(self) -> socket.socket:
        listener = self._stack.enter_context(socket.create_server((LOOPBACK, 0)))
        listener.settimeout(PATIENCE_SECONDS)
        return listener

    def client(self) -> socket.socket:
        address = (LOOPBACK, self.proxy.port)
        return self._stack.enter_context(socket.create_connection(address, timeout=PATIENCE_SECONDS))

    def accepted(self, listener: socket.socket | None = None) -> socket.socket:
        server = self._stack.enter_context((listener or self.listener).accept()[0])
        server.settimeout(PATIENCE_SECONDS)
        return server

    def pair(self) -> tuple[socket.socket, socket.socket]:
        client = self.client()
        return client, self.accepted()


@pytest.fixture
def proxied() -> Iterator[Proxied]:
    with ExitStack() as stack:
        yield Proxied(stack)


def passes(sender: socket.socket, receiver: socket.socket) -> bool:
    sender.sendall(b"x")
    return receiver.recv(10) == b"x"


def hears_nothing(receiver: socket.socket) -> bool:
    receiver.settimeout(MOMENT)
    try:
        receiver.recv(10)
    except TimeoutError:
        return True
    finally:
        receiver.settimeout(PATIENCE_SECONDS)
    return False


def is_acknowledged(sender: socket.socket) -> bool:
    """Tell whether the other end's TCP has acknowledged all that was sent (tcp(7), SIOCOUTQ)."""
    (waiting,) = struct.unpack("i", fcntl.ioctl(sender.fileno(), termios.TIOCOUTQ, b"\0" * 4))
    return bool(waiting == 0)


def is_reset(connection: socket.socket) -> bool:
    try:
        connection.recv(10)
    except ConnectionResetError:
        return True
    return False


def test_a_proxy_passes_bytes_and_ends_on_in_both_directions(proxied: Proxied) -> None:
    client, server = proxied.pair()
    assert passes(client, server)
    assert passes(server, client)
    client.close()
    assert server.recv(10) == b""
    client, server = proxied.pair()
    server.close()
    assert client.recv(10) == b""


def test_a_proxy_that_cuts_resets_connections_and_refuses_new_ones_until_it_is_restored(proxied: Proxied) -> None:
    client, server = proxied.pair()
    proxied.proxy.cut()
    assert is_reset(client)
    assert is_reset(server)
    with pytest.raises(ConnectionRefusedError):
        proxied.client()
    proxied.proxy.restore()
    assert passes(*proxied.pair())


def test_a_frozen_proxy_acknowledges_and_keeps_everything_until_it_thaws(proxied: Proxied) -> None:
    client, server = proxied.pair()
    proxied.proxy.freeze()
    late = proxied.client()
    for sender in (client, late, server):
        sender.sendall(b"kept")
        wait_for(lambda sender=sender: is_acknowledged(sender))  # type: ignore[misc]
    assert hears_nothing(client)
    assert hears_nothing(server)
    late.close()
    proxied.proxy.thaw()
    assert server.recv(10) == client.recv(10) == b"kept"
    assert passes(client, server)
    accepted = proxied.accepted()
    assert (accepted.recv(10), accepted.recv(10)) == (b"kept", b"")


def test_a_forgetful_proxy_forwards_only_new_connections(proxied: Proxied) -> None:
    client, server = proxied.pair()
    proxied.proxy.forget()
    for one, other in ((client, server), (server, client)):
        one.sendall(b"lost")
        wait_for(lambda one=one: is_acknowledged(one))  # type: ignore[misc]
        assert hears_nothing(other)
    assert passes(*proxied.pair())
    assert proxied.proxy.connections == 2
    proxied.proxy.freeze()
    proxied.proxy.thaw()
    client.close()
    assert hears_nothing(server)


def test_what_a_proxy_points_to_is_where_new_connections_go(proxied: Proxied) -> None:
    client, server = proxied.pair()
    other = proxied.listening()
    proxied.proxy.point_to(other.getsockname()[1])
    assert passes(proxied.client(), proxied.accepted(other))
    assert passes(client, server)


def test_a_proxy_in_front_of_nothing_resets(proxied: Proxied) -> None:
    proxied.listener.close()
    # The reset may come before connect() returns.
    with pytest.raises(ConnectionResetError):
        proxied.client().recv(10)


class Pair:
    """A primary and its synchronous standby, with a table."""

    def __init__(self, servers: PostgresServers) -> None:
        self.first = servers.primary("first")
        self.second = servers.standby_of(self.first, "second")
        self.first.configure(synchronous_standby_names="second")
        self.write(self.first.url, "CREATE TABLE number (value int)")

    def write(self, url: str, statement: LiteralString, *parameters: int) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(statement, parameters)

    def insert(self, value: int) -> None:
        self.write(f"{url_of(self.first, self.second)}?target_session_attrs=read-write", INSERT, value)

    def values(self, server: PostgresServer) -> list[int]:
        with psycopg.connect(server.url) as connection:
            return [value for (value,) in connection.execute("SELECT value FROM number ORDER BY value")]


def test_a_standby_takes_over_and_its_old_primary_comes_back_in_both_ways(tmp_path: Path) -> None:
    with PostgresServers(tmp_path, durable=False) as servers:
        pair = Pair(servers)
        pair.insert(1)
        assert (pair.first.is_standby(), pair.second.is_standby()) == (False, True)
        with pytest.raises(ReadOnlySqlTransaction):
            pair.write(pair.second.url, INSERT, 0)
        pair.first.stop("kill")
        pair.second.promote()
        pair.insert(2)
        pair.first.configure(synchronous_standby_names="")
        pair.first.rejoin(pair.second)
        assert pair.values(pair.first) == [1, 2]
        pair.second.stop("immediate")
        pair.first.promote()
        pair.insert(3)
        pair.second.follow_anew(pair.first)
        assert pair.values(pair.second) == [1, 2, 3]
        pair.first.configure(default_transaction_read_only="on")
        with pytest.raises(ReadOnlySqlTransaction):
            pair.write(pair.first.url, INSERT, 0)


def test_servers_end_with_their_block_and_a_role_needs_its_password(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), PostgresServers(tmp_path, durable=False) as servers:  # noqa: PT012
        server = servers.primary("only", work_mem="5MB")
        process = server.pid
        assert server.execute("SELECT current_setting('work_mem'), current_setting('fsync')") == ("5MB", "off")
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(server.url.replace(server.password, "wrong"))
        raise ZeroDivisionError
    assert not machine.lives(process)


@pytest.mark.skipif(pgbouncer.program() is None, reason=pgbouncer.MISSING)
def test_a_pooler_gives_one_connection_to_many_sessions_and_refuses_options(tmp_path: Path) -> None:
    with (
        PostgresServers(tmp_path, durable=False) as servers,
        pgbouncer.pooling(tmp_path / "pooler", servers.primary("only").url, "transaction") as url,
        psycopg.connect(url, autocommit=True) as one,
        psycopg.connect(url, autocommit=True) as other,
    ):
        backends = {connection.execute("SELECT pg_backend_pid()").fetchone() for connection in (one, other)}
        assert len(backends) == 1
        with pytest.raises(psycopg.OperationalError, match="unsupported startup parameter: options"):
            psycopg.connect(url, options="-c datestyle=ISO")
