"""The common part of all loops of requests: connections, a count of failures, and an end."""

from collections import Counter

from loadtest.testbed.connections import Pool, Server


class RequestLoop:
    """Sends requests to a server again and again, until end()."""

    def __init__(self, server: Server, connections: int) -> None:
        self._pool = Pool(server, connections, strict=True)
        self._goes_on = True
        self.failures: Counter[str] = Counter()

    @property
    def left(self) -> int:
        """The number of requests that used another connection, because their own connection was closed before they were
        written.
        """
        return self._pool.left

    def end(self) -> None:
        """Send no more."""
        self._goes_on = False

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()
