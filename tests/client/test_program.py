"""The program itself: its imports, its installation, its forms of output, its times, its completion."""

import csv
import io
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx
import pytest
import yaml
from pytest_django import Settings

from nexmdm.client import program, times
from tests.support.actors import Admin, Client, Phone
from tests.support.fleet_command import InProcess, run, run_nexmdm
from tests.support.moments import let_pass
from tests.support.processes import ROOT

SERVER_ONLY: Final = ("django", "ninja", "pydantic", "psycopg", "aiohttp", "uvicorn", "orjson", "structlog")


@pytest.fixture
def network(client: Client, admin: Admin) -> InProcess:
    return InProcess(client)


def imported_by(*modules: str) -> set[str]:
    """Return the modules that a Python process has loaded after it has imported these modules."""
    code = f"import sys; {'; '.join(f'import {name}' for name in modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_no_verb_imports_django_or_the_server() -> None:
    verbs = {f"nexmdm.client.verbs.{verb.module}" for verb in program.VERBS.values()}
    found = imported_by("nexmdm.client.program", *verbs)
    assert {name for name in found if name.partition(".")[0] in (*SERVER_ONLY, "commands", "devices")} == set()
    ours = {name for name in found if name.startswith("nexmdm.") and not name.startswith("nexmdm.client")}
    assert ours == {"nexmdm.auth", "nexmdm.auth.signing"}


def test_the_help_imports_no_http_client_no_keyring_and_no_yaml() -> None:
    assert not {"http.client", "ssl", "keyring", "yaml", "platformdirs"} & imported_by("nexmdm.client.program")


def test_the_package_is_the_client_alone_and_requires_what_it_imports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert all((ROOT / path).exists() for path in (*wheel["only-include"], *wheel["exclude"]))
    assert project["project"]["scripts"] == {"nexmdm": "nexmdm.client.__main__:main"}
    required = {re.split(r"[<>=;\[ ]", one)[0] for one in project["project"]["dependencies"]}
    assert required == {"click", "keyring", "platformdirs", "pyyaml", "rich", "rich-click", "segno"}
    files = [
        path
        for path in (ROOT / "nexmdm" / "client").rglob("*.py")
        if str(path.relative_to(ROOT)) not in wheel["exclude"]
    ]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files}
    assert not set(SERVER_ONLY) & imported_by(*sorted(modules - {"nexmdm.client.__main__"}))


def test_the_help_lists_every_verb_and_its_own_help_works_for_each(network: InProcess) -> None:
    assert subprocess.run(
        [sys.executable, "-m", "nexmdm.client", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.startswith("nexmdm")
    listed = subprocess.run(
        [sys.executable, "manage.py", "fleet", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "Usage: manage.py fleet" in listed
    for name, verb in program.VERBS.items():
        assert f" {name} " in listed
        assert run(name, "--help", transport=network).status == 0, verb


def test_the_help_of_send_lists_actions_with_their_parameters(
    capsys: pytest.CaptureFixture[str], network: InProcess
) -> None:
    assert run("send", "--help", transport=network).status == 0
    shown = capsys.readouterr().out
    assert re.search(r"ring +Ring, so that the phone can be found\.", shown)
    assert "duration_seconds=whole number from 5 to 120" in shown
    assert "activity=text, optional" in shown


@pytest.fixture
def fleet(admin: Admin) -> list[Phone]:
    """A silent device, a device that never sent a heartbeat, and an online device. They were enrolled in another
    order.
    """
    online, silent = admin.enrol("online", alias="=1+1"), admin.enrol("silent", alias="tab, 2")
    silent.heartbeat()
    let_pass(hours=1)
    online.heartbeat()
    return [silent, admin.enrol("never"), online]


@pytest.mark.parametrize("verb", [("devices",), ("commands",), ("audit",), ("enroll-tokens",), ("summary",)])
def test_every_read_has_every_form(network: InProcess, fleet: list[Phone], verb: tuple[str, ...]) -> None:
    run("ping", "all", transport=network)
    shown = {form: run(*verb, "-o", form, transport=network) for form in ("table", "wide", "json", "csv", "yaml")}
    assert {ran.status for ran in shown.values()} == {0}
    found: Any = json.loads(shown["json"].out)
    assert yaml.safe_load(shown["yaml"].out) == found
    assert run(*verb, "--json", transport=network).json == found
    rows = list(csv.DictReader(io.StringIO(shown["csv"].out)))
    assert len(rows) == (len(found) if isinstance(found, list) else 1)
    if isinstance(found, list):
        headings = shown["wide"].out.splitlines()[0].split()
        assert list(rows[0]) == headings
        assert headings[: len(shown["table"].out.splitlines()[0].split())] == shown["table"].out.splitlines()[0].split()


def test_csv_has_no_formulas_and_empty_cells_for_missing_values(network: InProcess, fleet: list[Phone]) -> None:
    rows = list(csv.DictReader(io.StringIO(run("devices", "-o", "csv", transport=network).out)))
    assert [row["alias"] for row in rows] == ["tab, 2", "", "'=1+1"]
    assert {row["model"] for row in rows} == {""}


def test_devices_are_listed_with_the_worst_first_over_pages_too(network: InProcess, fleet: list[Phone]) -> None:
    def listed(*words: str) -> list[str]:
        return [row["presence"] for row in run("devices", *words, "--json", transport=network).json]

    assert listed() == ["offline", "never", "online"]
    assert listed("--limit", "2") == ["offline", "never"]
    assert listed("--limit", "1") == ["offline"]
    assert listed("--newest-first") == ["never", "offline", "online"]
    assert listed("--status", "online", "--limit", "1") == ["online"]


def test_the_longest_silent_of_many_devices_are_listed(network: InProcess, admin: Admin) -> None:
    for name in ("first", "second", "third"):
        admin.enrol(name).heartbeat()
        let_pass(hours=1)
    for words in (("--limit", "1"), ("--status", "offline", "--limit", "1")):
        assert [row["hardware_id"] for row in run("devices", *words, "--json", transport=network).json] == ["first"]


def test_commands_are_listed_with_those_that_failed_first(network: InProcess, fleet: list[Phone], admin: Admin) -> None:
    worked, failed, still_open = (admin.command(to=phone).json["request_id"] for phone in fleet)
    fleet[0].report(worked, "succeeded")
    fleet[1].report(failed, "failed")

    def listed(*words: str) -> list[str]:
        return [row["request_id"] for row in run("commands", *words, "--json", transport=network).json]

    assert listed() == [failed, still_open, worked]
    assert listed("--newest-first") == [still_open, failed, worked]


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        """Return True, as a terminal does."""
        return True


def test_watch_shows_the_answer_again_until_ctrl_c(
    network: InProcess, fleet: list[Phone], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("nexmdm.client.verbs.shared.time.sleep", sleep)
    ran = run("summary", "--watch", transport=network)
    assert (ran.status, ran.out.count("open_deliveries"), slept) == (0, 3, [2, 2, 2])
    assert "\x1b" not in ran.out
    slept.clear()
    screen = Screen()
    assert run("summary", "--watch", transport=network, out=screen).status == 0
    assert screen.getvalue().count("\x1b[H\x1b[J") == 2
    slept.clear()
    assert run("devices", "--watch", "10", transport=network).status == 0
    assert slept == [10, 10, 10]


def test_watch_continues_while_the_server_is_away_and_ends_with_a_refusal(
    network: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexmdm.client.verbs.shared.time.sleep", lambda _: None)
    answers = iter(
        [httpx.ConnectError("Connection refused"), None, httpx.Response(403, json={"code": "x", "detail": "No."})]
    )

    def answer(request: httpx.Request) -> httpx.Response:
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found or network.handle_request(request)

    ran = run("summary", "--watch", transport=httpx.MockTransport(answer))
    assert (ran.status, ran.out.count("open_deliveries")) == (1, 1)
    assert "Connection refused" in ran.err
    assert "No." in ran.err


NOW: Final = datetime(2026, 11, 29, 12, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("written", "hours_ago"),
    [
        ("2h", 2), ("2h ago", 2), ("2 hours ago", 2), ("90m", 1.5), ("1d", 24), ("1 week ago", 168), ("now", 0),
        ("today", 12.5), ("yesterday", 36.5), ("Yesterday 12:30", 24), ("11:30", 1), ("2026-11-29", 12.5),
        ("2026-11-29 11:30", 1), ("2026-11-29T11:30:00Z", 1), ("2026-11-29T12:30:00+01:00", 1),
    ],
)  # fmt: skip
def test_a_time_is_accepted_in_common_forms(monkeypatch: pytest.MonkeyPatch, written: str, hours_ago: float) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return NOW if tz else NOW.replace(tzinfo=None)

    monkeypatch.setattr(times, "datetime", Clock)
    assert datetime.fromisoformat(times.moment(written)) == NOW - timedelta(hours=hours_ago)


@pytest.mark.parametrize("written", ["", "soon", "25:00", "2026-13-01", "2026", "999999999d"])
def test_a_text_that_is_not_a_time_is_refused_with_examples(network: InProcess, written: str) -> None:
    ran = run("commands", f"--since={written}", transport=network)
    assert ran.status == 2
    assert "must look like" in ran.err
    assert network.seen == []


@pytest.fixture
def completed(
    network: InProcess, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """Return the completions for the last word of a command line."""
    monkeypatch.setenv("ADMIN_KEY", settings.ADMIN_KEYS[0])
    monkeypatch.setenv("HMAC_SECRET", settings.HMAC_SECRETS[0])
    monkeypatch.setenv("NEXMDM_URL", "http://127.0.0.1:8000")

    def complete(words: str, transport: httpx.BaseTransport = network) -> list[str]:
        monkeypatch.setenv("_NEXMDM_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", f"nexmdm {words}")
        monkeypatch.setenv("COMP_CWORD", str(len(words.split(" "))))
        capsys.readouterr()
        run_nexmdm(transport=transport)
        return [line.partition(",")[2] for line in capsys.readouterr().out.splitlines() if line.startswith("plain,")]

    return complete


def test_a_shell_completes_verbs_options_actions_and_what_the_server_knows(
    network: InProcess, admin: Admin, completed: Callable[..., list[str]]
) -> None:
    Phone(network.client, "one").register(admin.enrollment_token(tags=["lobby"]), alias="tab-03")
    admin.enrol("hw-2")
    request_id = admin.command().json["request_id"]
    assert completed("enroll") == ["enroll-token", "enroll-tokens"]
    assert completed("devices --not") == ["--not-seen-for"]
    assert completed("devices --status o") == ["online", "offline"]
    assert completed("push-health --by m") == ["model", "manufacturer"]
    assert completed("send re") == ["reboot"]
    assert completed("device ta") == ["tab-03"]
    assert completed("revoke ") == ["@last", "hw-2", "tab-03"]
    assert completed("ping tab-03,hw") == ["tab-03,hw-2"]
    assert completed("ping tag:") == ["tag:lobby"]
    assert completed("send ping a") == ["all"]
    assert completed("devices --tag l") == completed("tag l") == ["lobby"]
    assert completed("command 01") == [request_id]
    webhook_id = admin.post("/admin/webhooks", {"url": "https://hooks.example.com/"}).json["id"]
    assert completed("webhook re") == ["replay", "resume"]
    assert completed("webhook show ") == [webhook_id]
    assert completed("webhook add URL --tags l") == ["lobby"]
    assert completed("events --types device.enrolled,command") == [
        f"device.enrolled,{name}" for name in ("command.*", "command.issued", "command.finished")
    ]


def test_a_server_that_does_not_answer_completes_nothing(
    completed: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        assert request.extensions["timeout"]["read"] == 1
        raise httpx.ReadTimeout("too late", request=request)

    assert completed("device ta", httpx.MockTransport(fail)) == []
    monkeypatch.delenv("NEXMDM_URL")
    assert completed("device ta") == []


@pytest.mark.parametrize(("shell", "way"), [("bash", "fish"), ("zsh", "zsh"), ("fish", "fish")])
def test_each_shell_has_a_completion_script(
    capsys: pytest.CaptureFixture[str], network: InProcess, shell: str, way: str
) -> None:
    assert run("completion", shell, transport=network).status == 0
    assert f"_NEXMDM_COMPLETE={way}_complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "offered", "inserted"),
    [
        (["device", "Fr"], "Front Desk", "Front\\ Desk"),
        (["ping", "tag", ":", "fl"], "tag:floor-1", "floor-1"),
        (["ping", "tag", ":"], "tag:floor-1", "floor-1"),
        (["ping", "tab-1,ta"], "tab-1,tab-2", "tab-1,tab-2"),
    ],
)
def test_bash_inserts_tags_in_spite_of_their_colon_and_aliases_with_their_space(
    capsys: pytest.CaptureFixture[str], network: InProcess, typed: list[str], offered: str, inserted: str
) -> None:
    run("completion", "bash", transport=network)
    line = f"nexmdm {' '.join(typed)}".replace(" : ", ":").replace(" :", ":")
    script = f"""{capsys.readouterr().out}
        offer() {{ [[ $COMP_WORDS == {shlex.quote(line)} ]] && printf 'plain,%s\\thelp\\n' {shlex.quote(offered)}; }}
        compopt() {{ :; }}
        complete_now() {{
            local COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)} COMP_CWORD={len(typed)}
            local COMP_WORDS=(nexmdm {shlex.join(typed)})
            _nexmdm_completion offer
        }}
        complete_now
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["/bin/bash", "--norc", "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"{inserted}\n", "")
