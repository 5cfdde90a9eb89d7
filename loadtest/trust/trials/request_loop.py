"""The common part of clients that send requests in a loop: connections, a count of failures, and an end."""

from collections import Counter

from loadtest.testbed.connections import Pool, Server


class RequestLoop:
    """A client that sends requests to a server until `end` is called.

    `failures` counts its failed requests, by error.
    """

    def __init__(self, server: Server, connections: int) -> None:
        self._pool = Pool(server, connections, strict=True)
        self._goes_on = True
        self.failures: Counter[str] = Counter()

    @property
    def left(self) -> int:
        """The number of requests that used another connection, because the server had closed the first connection."""
        return self._pool.left

    def end(self) -> None:
        """Send no more requests."""
        self._goes_on = False

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()
