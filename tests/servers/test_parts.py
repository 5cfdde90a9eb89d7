"""The parts one by one: a web worker on its own socket or on a given socket, and the probe of a container."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import httpx
import pytest
from django.conf import settings as django_settings

from nexmdm.standalone import embedded_postgres
from tests.support.processes import WEB, address, run, web_worker

HOST = "mdm.example.com"

NO_MDWE: Final = 77
_UNDER_MDWE: Final = f"""
import ctypes, os, sys
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0):
    sys.exit({NO_MDWE})
os.execv(sys.argv[1], sys.argv[1:])
"""
UNDER_MDWE: Final = (sys.executable, "-c", _UNDER_MDWE)
"""A program under PR_SET_MDWE with PR_MDWE_REFUSE_EXEC_GAIN, which systemd's MemoryDenyWriteExecute= is; Linux 6.3."""

NATIVE_CODE: Final = """
import aiohttp, bcrypt, httptools, orjson, psycopg, uvloop
from cryptography.hazmat.primitives.asymmetric import rsa
bcrypt.hashpw(b"x", bcrypt.gensalt(4))
rsa.generate_private_key(65537, 2048)
"""


@pytest.fixture
def variables(db: None) -> dict[str, str]:
    """The environment of a production on the tests' PostgreSQL."""
    names = ("SECRET_KEY", "ADMIN_KEY", "HMAC_SECRET", "COMMAND_SIGNING_KEY")
    secrets = {name: f"a-Secret-of-this-test-and-no-other-{name}" for name in names}
    return {**secrets, "DATABASE_URL": embedded_postgres.url(django_settings.DATA_DIR), "ALLOWED_HOSTS": HOST}


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def status(listener: socket.socket) -> int:
    return httpx.get(f"{address(listener)}/healthz", headers={"Host": HOST}, timeout=30).status_code


def test_no_client_is_refused_while_the_workers_on_a_socket_restart(
    variables: dict[str, str], listener: socket.socket
) -> None:
    with web_worker(listener, variables):
        assert status(listener) == 200
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(status, listener)
        with web_worker(listener, variables):
            assert waiting.result() == 200


def test_a_worker_whose_port_is_in_use_ends_with_an_error(variables: dict[str, str], listener: socket.socket) -> None:
    port = str(listener.getsockname()[1])
    done = run("-m", "nexmdm.web", HOST="127.0.0.1", PORT=port, **variables)
    assert done.returncode == 1
    said = f"Cannot listen on HOST 127.0.0.1, PORT {port}: Address already in use. Set another PORT: "
    assert done.stderr.startswith(said)
    assert done.stderr.endswith(" is free.\n")
    free = int(done.stderr.removeprefix(said).split()[0])
    socket.create_server(("127.0.0.1", free)).close()


def test_the_exit_status_of_the_probe_shows_whether_the_worker_is_healthy(
    variables: dict[str, str], listener: socket.socket
) -> None:
    at = {"HOST": "127.0.0.1", "PORT": str(listener.getsockname()[1]), **variables}
    with web_worker(listener, variables):
        assert run("-m", "nexmdm.http.probe", "/healthz", **at).returncode == 0
        missing = run("-m", "nexmdm.http.probe", "/nothing-here", **at)
        assert (missing.returncode, missing.stderr) == (1, "404\n")
    listener.close()
    gone = run("-m", "nexmdm.http.probe", "/healthz", **at)
    assert (gone.returncode, "refused" in gone.stderr) == (1, True)


def test_the_parts_work_where_no_memory_may_become_executable(
    variables: dict[str, str], listener: socket.socket
) -> None:
    if subprocess.run([*UNDER_MDWE, "/bin/true"], check=False).returncode == NO_MDWE:
        pytest.skip("the kernel has no PR_SET_MDWE")
    assert "Permission denied" in under_mdwe("import mmap; mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)")
    assert under_mdwe(NATIVE_CODE) == ""
    with web_worker(listener, variables, [*UNDER_MDWE, *WEB]):
        login = httpx.get(f"{address(listener)}/django-admin/login/", headers={"Host": HOST}, timeout=30)
        assert (login.status_code, status(listener)) == (200, 200)


def under_mdwe(code: str) -> str:
    """Return the error of this Python program."""
    return subprocess.run([*UNDER_MDWE, sys.executable, "-c", code], check=False, capture_output=True, text=True).stderr
