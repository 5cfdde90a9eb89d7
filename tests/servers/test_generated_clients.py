"""Clients that public generators make of the OpenAPI document: each contains every operation, and drives the loop."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from loadtest.testbed.serving import READY, Serving

LOOP: Final = Path(__file__).parent.parent / "support" / "generated_clients" / "loop.ts"
BIN: Final = Path(sys.executable).parent

Json = dict[str, Any]


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as folder:
        serving = Serving(Path(folder) / "data")
        yield serving.until_it_says(READY)
        assert serving.interrupt() == 0


@pytest.fixture(scope="module")
def document(serving: Serving) -> Json:
    found: Json = httpx.get(f"{serving.url}/openapi.json").json()
    return found


@pytest.fixture
def saved(document: Json, tmp_path: Path) -> Path:
    """The document as a file."""
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(document))
    return path


def operation_ids(document: Json) -> set[str]:
    return {one["operationId"] for methods in document["paths"].values() for one in methods.values()}


def in_camel_case(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))


def required(program: str, where_from: str) -> str:
    """Return a program's path; skip the test if the program is missing."""
    path = shutil.which(program, path=f"{BIN}:{os.environ['PATH']}")
    if path is None:
        pytest.skip(f"{program} is not installed: {where_from}")
    return path


def run(*program: str | Path, cwd: Path | None = None) -> str:
    """Run a program to its end and return all that it printed."""
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(
        list(map(str, program)),
        check=False,
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def generated(saved: Path, generator: str, to: Path, *options: str) -> None:
    """Generate a client by openapi-generator."""
    required("java", "openapi-generator needs it")
    program = required("openapi-generator-cli", "it is among the packages of the extra dev")
    printed = run(program, "generate", "-i", saved, "-g", generator, "-o", to, *options)
    assert not re.search(r"\bERROR\b|Exception", printed), printed


def functions(files: Sequence[Path], pattern: str) -> set[str]:
    return {name for file in files for name in re.findall(pattern, file.read_text(), re.MULTILINE)}


def enrollment_token(serving: Serving) -> str:
    with serving.admin() as admin:
        return str(admin.post("/admin/enrollment-tokens", {})["enrollment_token"])


def command(serving: Serving, device_id: str) -> str:
    with serving.admin() as admin:
        body = {"action": "ping", "target": {"device_ids": [device_id]}}
        return str(admin.post("/admin/command", body)["request_id"])


def outcome(serving: Serving, request_id: str) -> Any:
    with serving.admin() as admin:
        return admin.get(f"/admin/commands/{request_id}")["outcome"]


def test_the_document_names_its_server_and_its_version(document: Json) -> None:
    assert [server["url"] for server in document["servers"]] == ["/"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", document["info"]["version"])


def test_the_client_of_openapi_python_client_contains_every_operation_and_drives_the_loop(
    serving: Serving, document: Json, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = required("openapi-python-client", "it is among the packages of the extra dev")
    printed = run(generator, "generate", "--path", saved, "--output-path", tmp_path / "made", "--meta", "none")
    assert "warning" not in printed.lower(), printed
    made = {in_camel_case(file.stem) for file in (tmp_path / "made" / "api").glob("*/*.py")}
    assert operation_ids(document) - made == set()
    monkeypatch.syspath_prepend(str(tmp_path))
    client, models = importlib.import_module("made.client"), importlib.import_module("made.models")
    call = {
        name: importlib.import_module(f"made.api.device.{name}").sync
        for name in ("register", "heartbeat", "action_result")
    }
    target = models.SentPushTarget.from_dict({"kind": "fid", "value": "fid-of-python"})
    with client.AuthenticatedClient(serving.url, token=enrollment_token(serving)) as newcomer:
        body = models.Register(hardware_id="phone-of-python", push_target=target)
        registered = call["register"](client=newcomer, body=body)
    request_id = command(serving, str(registered.device_id))
    with client.AuthenticatedClient(serving.url, token=registered.device_token) as phone:
        (envelope,) = call["heartbeat"](client=phone, body=models.Heartbeat()).commands
        report = models.ActionResult.from_dict({"request_id": envelope.request_id, "status": "succeeded"})
        assert call["action_result"](client=phone, body=report).state == "succeeded"
    assert (envelope.request_id, outcome(serving, request_id)) == (request_id, "succeeded")


def test_the_typescript_client_contains_every_operation_and_drives_the_loop(
    serving: Serving, document: Json, saved: Path, tmp_path: Path
) -> None:
    compiler, node = required("tsc", "npm install -g typescript"), required("node", "TypeScript needs it")
    generated(saved, "typescript-fetch", tmp_path / "client")
    made = functions(list((tmp_path / "client" / "apis").glob("*.ts")), r"^    async (\w+)\(")
    assert operation_ids(document) - made == set()
    shutil.copy(LOOP, tmp_path / "loop.ts")
    options = ("--strict", "--target", "es2022", "--lib", "es2022,dom,dom.iterable", "--module", "commonjs")
    run(compiler, *options, "--types", "", "--outDir", "out", "loop.ts", cwd=tmp_path)
    phone = subprocess.Popen(
        [node, tmp_path / "out" / "loop.js", serving.url, enrollment_token(serving)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert phone.stdout is not None
    request_id = command(serving, phone.stdout.readline().strip())
    state, _ = phone.communicate("go on\n", timeout=60)
    assert (state.strip(), phone.returncode) == ("succeeded", 0)
    assert outcome(serving, request_id) == "succeeded"


def test_the_kotlin_client_contains_every_operation(document: Json, saved: Path, tmp_path: Path) -> None:
    generated(saved, "kotlin", tmp_path / "client")
    made = functions(list(tmp_path.glob("client/src/main/kotlin/**/apis/*.kt")), r"^    fun (\w+)\(")
    assert operation_ids(document) - made == set()
