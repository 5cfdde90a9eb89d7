"""A primary and its synchronous standby.

A commit waits until both servers have its data. So no commit is lost if one server is lost.
"""

from typing import Self

from loadtest.testbed.postgres_servers import Mode, PostgresFailed, PostgresServer, PostgresServers, url_of


class PostgresPair:
    """Two PostgreSQL servers. One server is the primary. The second server is its standby, or is stopped."""

    def __init__(self, primary: PostgresServer, standby: PostgresServer) -> None:
        """Use two running servers, of which `standby` follows `primary`. From now on, commits wait for the standby."""
        self.primary = primary
        self.standby = standby
        self._protect()

    @classmethod
    def made_by(cls, servers: PostgresServers, **settings: str) -> Self:
        """Create both servers with these settings of PostgreSQL."""
        primary = servers.primary("one", **settings)
        return cls(primary, servers.standby_of(primary, "two", **settings))

    @property
    def url(self) -> str:
        """The address of both servers, in the form of DATABASE_URL."""
        return url_of(self.primary, self.standby)

    @property
    def writable_url(self) -> str:
        """An address for libpq. libpq tries both servers, and uses the server that accepts writes."""
        return f"{self.url}?target_session_attrs=read-write&connect_timeout=5"

    def lose_primary(self, mode: Mode) -> None:
        """Stop the primary in this mode."""
        self.primary.stop(mode)

    def promote_standby(self) -> None:
        """Make the standby the primary. Until `rejoin`, commits wait for no standby."""
        self.standby.promote()
        self.primary, self.standby = self.standby, self.primary

    def rejoin(self) -> None:
        """Start the old primary as the standby. From now on, commits wait for the standby."""
        self.standby.stop()
        self.standby.configure(synchronous_standby_names="", default_transaction_read_only="off")
        try:
            self.standby.rejoin(self.primary)
        except PostgresFailed:
            self.standby.follow_anew(self.primary)
        self._protect()

    def _protect(self) -> None:
        self.primary.configure(synchronous_standby_names=f'"{self.standby.name}"')
        # The standby must also have the earlier commits.
        self.standby.until_it_streams_from(self.primary)
