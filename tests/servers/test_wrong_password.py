"""A first deployment with a wrong password: every process reports it, in one line and with libpq's text."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.testbed.postgres_servers import PostgresServer
from loadtest.testbed.serving import MANAGE, wait_for
from tests.servers.test_checks import SECRET
from tests.support import processes

PARTS = ((MANAGE, "migrate"), (MANAGE, "serve"), (MANAGE, "dispatch"), ("-m", "nexmdm.web"))
REASON = 'password authentication failed for user "nexmdm"'


@pytest.mark.parametrize("argv", PARTS, ids=[part[-1] for part in PARTS])
def test_a_wrong_password_is_an_error_of_one_line(
    server: PostgresServer, argv: tuple[str, ...], tmp_path: Path
) -> None:
    variables = {
        "DATABASE_URL": server.url.replace(server.password, "of-somebody-else"),
        "SECRET_KEY": SECRET + "-a-longer-one",
        "ADMIN_KEY": SECRET + "A",
        "HMAC_SECRET": SECRET + "B",
        "COMMAND_SIGNING_KEY": SECRET + "C",
        "ALLOWED_HOSTS": "localhost",
        "NEXMDM_DATA_DIR": str(tmp_path / "data"),
        "PORT": "0",
    }
    said = tmp_path / "said"
    with said.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *argv], env={**os.environ, **variables}, cwd=processes.ROOT, stdout=output, stderr=output
        )
    try:
        # A process that continues to run tries once more at its end: the dispatcher deletes its row.
        wait_for(lambda: process.poll() is not None or '.started"' in said.read_text())
    finally:
        process.terminate()
        process.wait(processes.STOP_SECONDS)
    text = said.read_text().replace("\\", "")
    assert text.count(REASON) == 1, text
    assert "Traceback" not in text
    assert "of-somebody-else" not in text
