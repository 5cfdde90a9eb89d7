"""The server of the kit: a process of `manage.py serve` with its own data folder."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from nexmdm.client import simulated_fcm
from nexmdm.client.http_client import FleetClient
from nexmdm.client.profiles import private_file

_ROOT: Final = Path(__file__).resolve().parent.parent.parent
_DATA: Final = "data"
_LOG: Final = "server.log"
_READY: Final = "Ctrl-C stops everything."
_START_SECONDS: Final = 90
_STOP_SECONDS: Final = 60
_PAUSE_SECONDS: Final = 0.1
_INHERITED: Final = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "BCRYPT_ROUNDS")
"""The environment variables that the server inherits from this process.

Settings of an existing installation, such as DATABASE_URL, are not inherited.
"""


class ServerFailed(Exception):
    """The server of the kit did not start. The message contains the output of the server."""


class Server:
    """The admin API of the running server."""

    def __init__(self, url: str, admin_key: str, hmac_secret: str) -> None:
        self.url = url
        self._key, self._secret = admin_key, hmac_secret

    async def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send a POST to the admin API. Raises Refused or Unreachable."""
        return await asyncio.to_thread(self._post, path, body)

    async def get(self, path: str) -> dict[str, Any]:
        """Send a GET to the admin API. Raises Refused or Unreachable."""
        return await asyncio.to_thread(self._get, path)

    def _post(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        with FleetClient(self.url, key=self._key, secret=self._secret) as client:
            return client.post(path, body)

    def _get(self, path: str) -> dict[str, Any]:
        with FleetClient(self.url, key=self._key, secret=self._secret) as client:
            return client.get(path)


@asynccontextmanager
async def running(folder: Path, fcm_url: str) -> AsyncIterator[Server]:
    """Run a server while this context is open. Its data are in `folder`.

    `fcm_url` is the address of the FCM to which the server sends its pushes. Raises ServerFailed.
    """
    process = await asyncio.to_thread(_start, folder, fcm_url)
    try:
        yield await asyncio.to_thread(_ready, process, folder)
    finally:
        process.send_signal(signal.SIGINT)
        await asyncio.to_thread(process.wait, _STOP_SECONDS)


def _start(folder: Path, fcm_url: str) -> subprocess.Popen[bytes]:
    account = folder / "service-account.json"
    private_file.write(account, json.dumps(simulated_fcm.service_account(fcm_url)))
    environment = {
        **{name: value for name in _INHERITED if (value := os.environ.get(name))},
        "NEXMDM_DATA_DIR": str(folder / _DATA), "HOST": "127.0.0.1", "PORT": "0", "HEARTBEAT_INTERVAL_SECONDS": "5",
        "FCM_BASE_URL": fcm_url, "GOOGLE_APPLICATION_CREDENTIALS": str(account), "ADMIN_RATE_LIMIT": "6000/m",
    }  # fmt: skip
    with (folder / _LOG).open("wb") as output:
        return subprocess.Popen(
            [sys.executable, str(_ROOT / "manage.py"), "serve", "--end-with-parent"],
            cwd=_ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip


def _ready(process: subprocess.Popen[bytes], folder: Path) -> Server:
    """Wait until the server is ready. Raises ServerFailed if it ends or needs too long."""
    deadline = time.monotonic() + _START_SECONDS
    while _READY not in (said := (folder / _LOG).read_text()):
        if process.poll() is not None or time.monotonic() > deadline:
            raise ServerFailed(f"The server of the kit did not start:\n{said}")
        time.sleep(_PAUSE_SECONDS)
    secrets = dict(line.split("=", 1) for line in (folder / _DATA / "secrets.env").read_text().splitlines())
    return Server(re.findall(r"ready: (\S+)", said)[-1], secrets["ADMIN_KEY"], secrets["HMAC_SECRET"])
