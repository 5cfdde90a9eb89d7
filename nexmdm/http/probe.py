"""Ask the web process of this machine for its health: `python -m nexmdm.http.probe /healthz`, for health checks.

The exit status is 0 if the answer is 200. The Host header is one that ALLOWED_HOSTS accepts.
"""

import http.client
import os
import sys
from typing import Final

from django.conf import settings

from nexmdm.common import addresses

_SECONDS: Final = 5


def main() -> None:
    """Request the path in the first argument (default: /healthz). If the answer is not 200, print why; exit with 1."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "nexmdm.settings")
    answer = status(settings.HOST, settings.PORT, *sys.argv[1:2])
    if answer != "200":
        sys.exit(answer)


def status(host: str, port: int, path: str = "/healthz") -> str:
    """Return the status of the answer (`200`), or the text of the error if there is no answer."""
    name = addresses.host_instead_of("localhost") or "localhost"
    connection = http.client.HTTPConnection(addresses.LOOPBACK.get(host, host), port, timeout=_SECONDS)
    try:
        connection.request("GET", path, headers={"Host": f"{name}:{port}"})
        return str(connection.getresponse().status)
    except (OSError, http.client.HTTPException) as error:
        return str(error)
    finally:
        connection.close()


if __name__ == "__main__":
    main()
