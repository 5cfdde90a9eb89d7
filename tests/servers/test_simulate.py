"""A simulated fleet, as a new user starts it: `manage.py simulate --count 6 --fail 50% --silent 17% --push`."""

import json
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from loadtest.testbed.serving import MANAGE, READY, WAIT_SECONDS, Serving, wait_for
from nexmdm.client.simulated_fcm import service_account


@contextmanager
def simulating(serve: Serving, *options: str) -> Iterator[Path]:
    """Run `simulate` next to a server while this context is open. Yield the file with its output."""
    path = serve.data_dir.parent / "phones"
    with path.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, MANAGE, "simulate", *options], env=serve.environment, stdout=output, stderr=output
        )
    try:
        wait_for(lambda: "Registered" in path.read_text() or process.poll() is not None)
        yield path
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_SECONDS) == 0


def test_a_simulated_fleet_gets_pushes_and_some_of_its_phones_fail_or_become_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        fcm_url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as folder:
        account = Path(folder) / "account.json"
        account.write_text(json.dumps(service_account(fcm_url)))
        fcm = {"FCM_BASE_URL": fcm_url, "GOOGLE_APPLICATION_CREDENTIALS": str(account)}
        serve = Serving(Path(folder) / "data", **fcm).until_it_says(READY)
        serve.environment["PORT"] = serve.url.rpartition(":")[2]
        options = ("--count", "6", "--fail", "50%", "--silent", "17%", "--push", "--interval", "60", "--alias", "shop")
        try:
            with simulating(serve, *options) as printed, closing(serve.admin()) as admin:
                wait_for(lambda: admin.get("/admin/summary")["devices"]["online"])
                sent = admin.post("/admin/command", {"action": "ping", "target": {"all": True}})
                wait_for(lambda: admin.command(sent["request_id"])["counts"]["failed"] == 3)
                wait_for(lambda: admin.command(sent["request_id"])["counts"]["succeeded"] == 2)
                deliveries, _ = admin.items(f"/admin/commands/{sent['request_id']}/deliveries", 10)
                lines = printed.read_text()
            stopped = printed.read_text()
        finally:
            serve.interrupt()
    found = {row["alias"]: (row["state"], row["delivered_via"]) for row in deliveries}
    assert found == {
        **{f"shop-{number}": ("failed", "push") for number in (1, 2, 3)},
        "shop-4": ("pending", None),
        **{f"shop-{number}": ("succeeded", "push") for number in (5, 6)},
    }
    assert "shop-1 to shop-6 (6 phones); a heartbeat every 60 s." in lines
    assert "shop-1 to shop-3 (3 phones): report each command as failed." in lines
    assert "shop-4: fall silent after one heartbeat." in lines
    assert "make run" not in lines, "the server is started as it has to be"
    assert stopped.endswith("Stopped.\n")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--fail", "lots"), "'lots' is not a percentage from 0 to 100, such as 10%"),
        (("--silent", "101%"), "'101%' is not a percentage from 0 to 100, such as 10%"),
        (("--url", "http://127.0.0.1:1"), "give an enrollment token of that server"),
        ((), "Is the server running? Start the server with `make run`"),
    ],
)
def test_invalid_options_are_refused_with_advice(tmp_path: Path, options: tuple[str, ...], error: str) -> None:
    environment = {"PATH": "/usr/bin:/bin", "NEXMDM_DATA_DIR": str(tmp_path / "data"), "PORT": "1"}
    done = subprocess.run(
        [sys.executable, MANAGE, "simulate", *options],
        env=environment, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert error in done.stderr
    assert "Traceback" not in done.stderr


def test_each_port_for_pushes_has_a_service_account_that_names_it(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "NEXMDM_DATA_DIR": str(tmp_path / "data"), "PORT": "1"}
    for port in ("8101", "8102"):
        done = subprocess.run(
            [sys.executable, MANAGE, "simulate", "--push"],
            env={**environment, "FCM_BASE_URL": f"http://127.0.0.1:{port}"},
            capture_output=True, text=True, timeout=WAIT_SECONDS, check=False,
        )  # fmt: skip
        path = tmp_path / "data" / f"simulated-firebase-{port}.json"
        assert json.loads(path.read_text())["token_uri"] == f"http://127.0.0.1:{port}/token"
        assert path.stat().st_mode & 0o777 == 0o600
        assert f"FCM_BASE_URL=http://127.0.0.1:{port} GOOGLE_APPLICATION_CREDENTIALS={path} make run" in done.stdout
