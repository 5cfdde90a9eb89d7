"""The problems with which the protocol itself answers."""

from typing import Final

from nexmdm.common import problems
from nexmdm.common.problems import Problem
from nexmdm.http.connection_timer import HEAD_SECONDS
from nexmdm.http.guard import guard

TOO_LARGE: Final = problems.general(431, f"The headers are larger than {guard.HEADERS_LIMIT} bytes.")
TOO_SLOW: Final = problems.general(408, f"The headers did not arrive within {HEAD_SECONDS} s.")
NO_HTTP: Final = Problem(400, "invalid_request", "This is not an HTTP/1.1 request.")
BROKEN_BODY: Final = Problem(400, "invalid_request", "The chunks of the body are not valid HTTP/1.1.")
NO_UPGRADE: Final = Problem(400, "invalid_request", "This server speaks only HTTP/1.1. Remove the Upgrade header.")
TOO_MANY_AHEAD: Final = problems.general(
    503, "This connection has too many requests without an answer. Read the answers before you send more requests."
)
