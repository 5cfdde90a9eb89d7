"""A primary with one synchronous standby: committed data is on both, so that one of them can be lost."""

from typing import Self

from loadtest.testbed.postgres_servers import Mode, PostgresFailed, PostgresServer, PostgresServers, url_of


class PostgresPair:
    """Two servers. One of them is the primary, and the other one is its standby or is stopped."""

    def __init__(self, primary: PostgresServer, standby: PostgresServer) -> None:
        """Take a primary and its standby, and let commits wait for the standby."""
        self.primary = primary
        self.standby = standby
        self._protect()

    @classmethod
    def made_by(cls, servers: PostgresServers, **settings: str) -> Self:
        """Create both servers with these settings."""
        primary = servers.primary("one", **settings)
        return cls(primary, servers.standby_of(primary, "two", **settings))

    @property
    def url(self) -> str:
        """The address of both servers, in the form of DATABASE_URL."""
        return url_of(self.primary, self.standby)

    @property
    def writable_url(self) -> str:
        """The address of both servers for libpq, which finds the server that accepts writes."""
        return f"{self.url}?target_session_attrs=read-write&connect_timeout=5"

    def lose_primary(self, mode: Mode) -> None:
        """Stop the primary in this mode."""
        self.primary.stop(mode)

    def promote_standby(self) -> None:
        """Make the standby the primary. No commit waits for a standby until rejoin()."""
        self.standby.promote()
        self.primary, self.standby = self.standby, self.primary

    def rejoin(self) -> None:
        """Bring the former primary back as standby, and let commits wait for it."""
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
