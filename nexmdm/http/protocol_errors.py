"""The answers that the protocol gives by itself."""

from typing import Final

from nexmdm.common import problems
from nexmdm.common.problems import Problem
from nexmdm.http.connection_timer import HEAD_SECONDS
from nexmdm.http.guard import guard

TOO_LARGE: Final = problems.general(431, f"The headers take more than {guard.HEADERS_LIMIT} bytes.")
TOO_SLOW: Final = problems.general(408, f"The headers did not arrive within {HEAD_SECONDS} s.")
NO_HTTP: Final = Problem(400, "invalid_request", "This is not a request of HTTP/1.1.")
BROKEN_BODY: Final = Problem(400, "invalid_request", "The body's chunks are not framed as HTTP/1.1 frames them.")
NO_UPGRADE: Final = Problem(400, "invalid_request", "Only HTTP/1.1 is spoken here: leave the Upgrade header away.")
TOO_MANY_AHEAD: Final = problems.general(
    503, "Too many requests are sent ahead. Wait for answers before you send more."
)
