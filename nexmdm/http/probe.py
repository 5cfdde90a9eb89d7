"""Ask the web process of this machine for its health: `python -m nexmdm.http.probe /healthz`, for health checks.

The exit status is 0 if the answer is 200. The request has a Host header that ALLOWED_HOSTS accepts.
"""

import http.client
import os
import sys
from http import HTTPStatus
from typing import Final

from django.conf import settings

from nexmdm.common import addresses

_SECONDS: Final = 5


def main() -> None:
    """Request the path in the first argument, or /healthz. If the status is not 200, print why and exit with 1."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "nexmdm.settings")
    answer = status(settings.HOST, settings.PORT, *sys.argv[1:2])
    if answer != "200":
        sys.exit(answer)


def status(host: str, port: int, path: str = "/healthz") -> str:
    """Return the status of the answer as a text, or the text of the error if there is no answer."""
    try:
        return str(_get(host, port, path, {})[0])
    except OSError as error:
        return str(error)


def metrics(host: str, port: int) -> str:
    """Return the text of /metrics. Raises OSError if the status is not 200, or if there is no answer."""
    bearer = {"Authorization": f"Bearer {settings.METRICS_TOKEN}"} if settings.METRICS_TOKEN else {}
    answered, text = _get(host, port, "/metrics", bearer)
    if answered != HTTPStatus.OK:
        raise ConnectionError(f"/metrics answers {answered}.")
    return text


def _get(host: str, port: int, path: str, headers: dict[str, str]) -> tuple[int, str]:
    name = addresses.host_instead_of("localhost") or "localhost"
    connection = http.client.HTTPConnection(addresses.LOOPBACK.get(host, host), port, timeout=_SECONDS)
    try:
        connection.request("GET", path, headers={"Host": f"{name}:{port}", **headers})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error
    finally:
        connection.close()


if __name__ == "__main__":
    main()
