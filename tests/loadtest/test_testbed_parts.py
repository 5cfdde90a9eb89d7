"""The proxy, the PostgreSQL servers and the pooler of the testbed follow their orders."""

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
from loadtest.testbed.postgres_pair import PostgresPair
from loadtest.testbed.postgres_servers import PostgresFailed, PostgresServer, PostgresServers
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
    """Return whether the other end's TCP has acknowledged all data (tcp(7), SIOCOUTQ)."""
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


def test_new_connections_go_to_the_target_of_a_proxy(proxied: Proxied) -> None:
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


def write(url: str, statement: LiteralString, *parameters: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement, parameters)


def values(server: PostgresServer) -> list[int]:
    with psycopg.connect(server.url) as connection:
        return [value for (value,) in connection.execute("SELECT value FROM number ORDER BY value")]


def test_a_standby_is_promoted_and_its_old_primary_returns_in_both_ways(tmp_path: Path) -> None:
    with PostgresServers(tmp_path, durable=False) as servers:
        pair = PostgresPair.made_by(servers)
        first, second = pair.primary, pair.standby
        write(pair.writable_url, "CREATE TABLE number (value int)")
        write(pair.writable_url, INSERT, 1)
        assert (first.is_standby(), second.is_standby()) == (False, True)
        with pytest.raises(ReadOnlySqlTransaction):
            write(second.url, INSERT, 0)
        pair.lose_primary("kill")
        pair.promote_standby()
        write(pair.writable_url, INSERT, 2)
        pair.rejoin()
        assert (pair.primary, values(first)) == (second, [1, 2])
        second.stop("immediate")
        first.promote()
        write(pair.writable_url, INSERT, 3)
        second.follow_anew(first)
        assert values(second) == [1, 2, 3]
        first.configure(default_transaction_read_only="on")
        with pytest.raises(ReadOnlySqlTransaction):
            write(first.url, INSERT, 0)


def test_a_commit_waits_for_the_present_standby(tmp_path: Path) -> None:
    with PostgresServers(tmp_path, durable=False) as servers:
        pair = PostgresPair.made_by(servers)
        for number in range(2):
            state = "SELECT application_name, sync_state FROM pg_stat_replication"
            assert pair.primary.execute(state) == (pair.standby.name, "sync")
            if number == 0:
                pair.lose_primary("immediate")
                pair.promote_standby()
                pair.rejoin()


def test_servers_end_with_their_block_and_refuse_wrong_passwords_and_settings(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), PostgresServers(tmp_path, durable=False) as servers:  # noqa: PT012
        server = servers.primary("only", work_mem="5MB")
        process = server.pid
        assert server.execute("SELECT current_setting('work_mem'), current_setting('fsync')") == ("5MB", "off")
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(server.url.replace(server.password, "wrong"))
        # FIRST is a keyword of this setting.
        with pytest.raises(PostgresFailed, match="synchronous_standby_names"):
            server.configure(synchronous_standby_names="first")
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
