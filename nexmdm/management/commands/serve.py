"""The command `manage.py serve`, which runs all parts of NexMDM.

The parts are the web workers, a dispatcher and, if DATABASE_URL is not set, the embedded PostgreSQL. Before the parts
start, `serve` applies the migrations.
"""

import os
import shlex
import shutil
import socket
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import connections

from nexmdm.common import addresses
from nexmdm.config import checks
from nexmdm.http import probe, server
from nexmdm.http.server import CannotListen
from nexmdm.standalone import embedded_postgres, instance_lock, supervisor
from nexmdm.standalone.fleet_status import FleetStatus
from nexmdm.standalone.status_lines import StatusLines
from nexmdm.standalone.supervisor import Child, Postgres, ProcessGroup, StopRequest

log = structlog.get_logger()

_PORT_WAIT_SECONDS: Final = 25
_READY_SECONDS: Final = 90
_PAUSE_SECONDS: Final = 0.1


class Command(BaseCommand):
    """Run all parts until SIGINT or SIGTERM.

    The web workers and the dispatcher stop first. The embedded PostgreSQL stops last.
    """

    help = "Run everything: migrations, web workers, a dispatcher, and without DATABASE_URL an embedded PostgreSQL."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("--end-with-parent", action="store_true", help="stop when the parent process has ended")

    def handle(self, *_: object, end_with_parent: bool, **__: Any) -> None:
        """Run all parts. Raises CommandError if the embedded PostgreSQL or the data folder cannot be used."""
        stop = StopRequest(with_parent=end_with_parent)
        self._restart = "make run" if end_with_parent else f"{_programs()} serve"
        try:
            with ExitStack() as stack:
                self._run(stack, stop)
        except (embedded_postgres.EmbeddedError, instance_lock.InstanceLockedError) as error:
            raise CommandError(str(error)) from error

    def _run(self, stack: ExitStack, stop: StopRequest) -> None:
        instance = stack.enter_context(instance_lock.acquire_when_free(settings.DATA_DIR, self._say))
        listener = stack.enter_context(self._listen(patiently=instance.after_a_crash))
        postgres = Postgres(settings.DATA_DIR) if settings.EMBEDDED else None
        held = [stack.enter_context(postgres.running(supervisor.environment(settings.BASE_DIR)))] if postgres else []
        _migrate()
        processes = _start_processes(stack, listener, held)
        stack.callback(instance.note, instance_lock.STOPPING)
        stack.callback(log.info, "serve.stopping")
        status = _status_lines(listener)
        stack.callback(status.close)
        is_ready = self._becomes_ready(processes, listener, stop)
        if is_ready:
            self._say(_welcome(listener))
        while not stop:
            processes.poll()
            if postgres is not None:
                postgres.poll()
            if is_ready:
                status.refresh()
            time.sleep(_PAUSE_SECONDS)

    def _listen(self, *, patiently: bool) -> socket.socket:
        """Open the listening socket. Raises CommandError if the port is in use.

        With `patiently`, wait up to 25 s for a port that is in use. The children of a killed `serve` may still use the
        port.
        """
        try:
            return server.listen()
        except CannotListen as error:
            if not patiently:
                raise CommandError("\n".join([str(error), *self._with_free_port(error)])) from error
        self._say(f"Waiting for port {settings.PORT}, which the previous `manage.py serve` may still use …")
        _wait_until_bindable(time.monotonic() + _PORT_WAIT_SECONDS)
        return self._listen(patiently=False)

    def _with_free_port(self, error: CannotListen) -> Iterator[str]:
        if error.free_port is not None:
            yield f"To start the server there: {_with_variables(self._restart, str(error.free_port))}"

    def _becomes_ready(self, processes: ProcessGroup, listener: socket.socket, stop: StopRequest) -> bool:
        """Wait until /readyz answers 200. Return False if a stop is requested first.

        Raises CommandError if a child process dies, or if /readyz does not answer 200 within 90 s.
        """
        deadline = time.monotonic() + _READY_SECONDS
        host, port = listener.getsockname()[:2]
        while not stop:
            if (answer := probe.status(host, port, "/readyz")) == "200":
                return True
            processes.poll()
            if processes.lost:
                raise CommandError(
                    f"{processes.lost[0]} ended before the server was ready. The output of this process is above."
                )
            if time.monotonic() > deadline:
                raise CommandError(
                    f"The server is not ready after {_READY_SECONDS} seconds. /readyz answers: {answer}."
                )
            time.sleep(_PAUSE_SECONDS)
        return False

    def _say(self, text: str) -> None:
        self.stdout.write(text)
        self.stdout.flush()


def _wait_until_bindable(deadline: float) -> None:
    while time.monotonic() < deadline:
        with suppress(CannotListen):
            server.listen().close()
            return
        time.sleep(_PAUSE_SECONDS)


def _migrate() -> None:
    call_command("migrate", verbosity=0, interactive=False, skip_checks=False)
    checks.refuse(checks.connections())
    connections.close_all()
    connections["default"].close_pool()  # type: ignore[attr-defined]


def _start_processes(stack: ExitStack, listener: socket.socket, held: list[int]) -> ProcessGroup:
    pipe = stack.enter_context(supervisor.parent_watch_pipe())
    metrics_dir = _fresh(settings.DATA_DIR / "metrics")
    shared = supervisor.environment(settings.BASE_DIR, PROMETHEUS_MULTIPROC_DIR=str(metrics_dir))
    shared = supervisor.with_parent_watch(shared, pipe)
    processes = ProcessGroup(list(_children(listener, shared, [pipe, *held])), metrics_dir)
    stack.callback(processes.stop)
    processes.start()
    return processes


def _children(listener: socket.socket, shared: dict[str, str], descriptors: list[int]) -> Iterator[Child]:
    serving = {**shared, server.VARIABLE: str(listener.fileno())}
    for number in range(1, settings.WEB_WORKERS + 1):
        argv = [sys.executable, "-m", "nexmdm.web"]
        yield Child(f"web-{number}", argv, serving, [listener.fileno(), *descriptors])
    yield Child("dispatch", [sys.executable, str(settings.BASE_DIR / "manage.py"), "dispatch"], shared, descriptors)


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    host = addresses.LOOPBACK.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _status_lines(listener: socket.socket) -> StatusLines:
    url = _url(listener)
    where = f"NexMDM {url} · admin site {url}/django-admin/ · Ctrl-C stops everything"
    fleet = FleetStatus(partial(probe.metrics, *listener.getsockname()[:2]))
    return StatusLines(sys.stdout, lambda: [where, fleet.line()])


def _welcome(listener: socket.socket) -> str:
    port = str(listener.getsockname()[1]) if os.environ.get("PORT") else ""
    url, command = _url(listener), _with_variables(_programs(), port)
    lines = [f"NexMDM is ready: {url}", *_facts(url, command), "", "Ctrl-C stops everything."]
    return "\n".join(["", *lines, ""])


def _facts(url: str, command: str) -> Iterator[str]:
    if settings.API_DOCS:
        yield f"  API          {url}/docs"
    yield f"  Admin site   {url}/django-admin/   (to create the first user: {command} createsuperuser)"
    if settings.EMBEDDED:
        yield f"  Secrets      {settings.SECRETS_FILE}"
    if os.geteuid() == 0:
        yield f"  Account      web and dispatcher run as root; to avoid that: {_as_another_account()}"
    if settings.FIREBASE_SERVICE_ACCOUNT is None:
        yield "  Push         Firebase is not configured: commands travel by heartbeat"
    else:
        yield f"  Push         Firebase project {settings.FIREBASE_SERVICE_ACCOUNT['project_id']}"
    yield "  To start a simulated phone, run in another terminal" + (
        "" if settings.EMBEDDED else " with the same environment"
    )
    yield f"    {command} simulate"
    yield "  To send the phone a first command, run in a third terminal"
    yield f"    {command} fleet ping all --wait"


def _as_another_account() -> str:
    """Return the shell command that starts NexMDM under the account ACCOUNT instead of root."""
    folders = [settings.BASE_DIR, *([] if settings.DATA_DIR.is_relative_to(settings.BASE_DIR) else [settings.DATA_DIR])]
    owned = " ".join(shlex.quote(str(folder)) for folder in folders)
    run = shlex.quote(f"make -C {shlex.quote(str(settings.BASE_DIR))} run")
    return f"chown -R ACCOUNT {owned} && su ACCOUNT -c {run}"


def _with_variables(command: str, port: str) -> str:
    """Return `command` with the variables that it needs to find this server and its secrets.

    An empty `port` is left out.
    """
    values = {"NEXMDM_DATA_DIR": os.environ.get("NEXMDM_DATA_DIR"), "HOST": os.environ.get("HOST"), "PORT": port}
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in values.items() if value), command])


def _programs() -> str:
    return shlex.join([_shortest(Path(sys.executable)), _shortest(settings.BASE_DIR / "manage.py")])


def _shortest(path: Path) -> str:
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)
