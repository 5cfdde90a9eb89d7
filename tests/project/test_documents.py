"""Everything that the documents and deployment files name exists, and everything that exists is documented."""

import ast
import re
from argparse import ArgumentParser
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest
import rich_click as click
from django.core.management import get_commands, load_command_class

from commands.actions import CATALOGUE
from commands.models import (
    FCM_ERRORS,
    AttemptOutcome,
    CommandOutcome,
    CommandState,
    DeliveryState,
    PushNow,
    ReportStatus,
)
from devices.identity import device_checks
from devices.models import PUSH_HEALTH
from devices.presence.states import presences
from nexmdm.client import program as client
from nexmdm.common.event_feed.events import EventType
from nexmdm.config import checks
from nexmdm.config.environment import ConfigError
from nexmdm.conformance.catalogue import SCENARIOS
from nexmdm.version import VERSION
from tests.support.documents import PAGES, anchors, code, commands, links, name_of, options
from tests.support.processes import ROOT

DOCS: Final = ROOT / "docs"
OPERATIONS: Final = DOCS / "operations"
DEPLOYMENT: Final = [
    *(ROOT / name for name in ("Dockerfile", "compose.yaml", "Procfile", ".replit", "Makefile")),
    *sorted(OPERATIONS.glob("systemd/*")),
    *sorted(OPERATIONS.glob("proxy/*")),
]
README_LINES: Final = 100
"""Two screens."""

OF_OTHERS: Final = {
    "POSTGRES_DB", "POSTGRES_PASSWORD", "POSTGRES_USER", "RESTORED_URL", "NEXMDM_LISTEN_FD", "NEXMDM_TEST_DATA_DIR",
    "ENROLLMENT_TOKEN", "DEVICE_ID", "DEVICE_TOKEN", "REQUEST_ID", "NEXMDM_URL", "NEXMDM_PROFILE",
    "SSL_CERT_FILE", "HTTPS_PROXY", "NO_PROXY", "NEXMDM_WEBHOOK_SECRET", "WEBHOOK_SECRET", "CHAT_URL", "TICKETS_URL",
    "TICKETS_TOKEN",
}  # fmt: skip
"""Names in the documents that are not settings: of the database image, a shell, a parent process, clients, recipes."""


def variables() -> set[str]:
    """Return the names that the settings read from the environment."""
    calls = (node for node in ast.walk(tree("settings")) if isinstance(node, ast.Call))
    read = {call.args[0].value for call in calls if is_of_environment(call) and isinstance(call.args[0], ast.Constant)}
    constants = {node.value for node in ast.walk(tree("config/environment")) if isinstance(node, ast.Constant)}
    firebase = {value for value in constants if isinstance(value, str) and re.fullmatch(r"(FIRE|GOOGLE)[A-Z_]+", value)}
    return {str(name) for name in read | firebase}


def tree(module: str) -> ast.Module:
    return ast.parse((ROOT / "nexmdm" / f"{module}.py").read_text())


def is_of_environment(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "environment" and bool(call.args)


def test_every_setting_is_on_its_page_and_nothing_else() -> None:
    rows = re.findall(r"^\| (`[A-Z].*?) \|", (OPERATIONS / "settings.md").read_text(), re.MULTILINE)
    documented = set(re.findall(r"`([A-Z_]+)`", " ".join(rows)))
    assert documented == variables()


@pytest.mark.parametrize("path", [*DEPLOYMENT, *OPERATIONS.glob("*.md")], ids=name_of)
def test_every_variable_that_a_document_names_exists(path: Path) -> None:
    text = code(path)
    named = set(re.findall(r"(?:^|[\s\"'])([A-Z]+_[A-Z_]+)\s?[=:]", text, re.MULTILINE))
    named |= set(re.findall(r"^([A-Z]+_[A-Z_]+)$", text, re.MULTILINE))
    makefile = set(re.findall(r"^([A-Z_]+) [:?]?=", text, re.MULTILINE)) if path.name == "Makefile" else set()
    assert named - variables() - OF_OTHERS - makefile - set(FCM_ERRORS) == set()


@cache
def parser_of(name: str) -> ArgumentParser:
    return load_command_class(get_commands()[name], name).create_parser("manage.py", name)


def unknown_to_the_client(words: list[str], given: set[str]) -> list[str]:
    """Return the fault of a command of `nexmdm` (or `manage.py fleet`, which is the same): its verb, or its options."""
    verb = words[0] if words and re.fullmatch(r"[a-z][a-z-]+", words[0]) else None
    if verb is not None and verb not in client.VERBS:
        return [f"fleet {verb}"]
    called = [verb_of_the_client(name) for name in ([verb] if verb is not None else client.VERBS)]
    if verb is not None and isinstance(called[0], click.Group) and len(words) > 1:
        if words[1] not in called[0].commands:
            return [f"fleet {verb} {words[1]}"]
        called = [called[0].commands[words[1]]]
    known = {"--help"} | {one for command in called for option in options_of(command) for one in option.opts}
    return [f"fleet {verb or ''} {option}" for option in sorted(given - known)]


def verb_of_the_client(name: str) -> click.Command:
    module = import_module(f"nexmdm.client.verbs.{client.VERBS[name].module}")
    found: click.Command = getattr(module, name.replace("-", "_"))
    return found


def options_of(command: click.Command) -> list[click.Parameter]:
    """Return the options of a verb, and those of its own verbs."""
    inner = command.commands.values() if isinstance(command, click.Group) else ()
    return [*command.params, *(option for one in inner for option in options_of(one))]


def verbs_of(parser: ArgumentParser) -> dict[str, ArgumentParser]:
    """Return the verbs of a command, each with its parser. A verb without its own parser has that of the command."""
    for action in parser._actions:
        if action.dest == "verb" and action.choices is not None:
            return {
                str(verb): action.choices[verb] if isinstance(action.choices, dict) else parser
                for verb in action.choices
            }
    return {}


def unknown_to_manage(name: str, words: list[str], given: set[str]) -> list[str]:
    """Return the fault of a command of manage.py: its name, its verb, or its options."""
    if name == "fleet":
        return unknown_to_the_client(words, given)
    if name not in get_commands():
        return [name]
    parser = parser_of(name)
    verbs = verbs_of(parser)
    verb = words[0] if words and re.fullmatch(r"[a-z][a-z-]+", words[0]) else None
    if verbs and verb is not None and verb not in verbs:
        return [f"{name} {verb}"]
    parsers = [parser, *([verbs[verb]] if verb in verbs else verbs.values())]
    known = {option for one in parsers for option in one._option_string_actions}
    return [f"{name} {verb or ''} {option}" for option in sorted(given - known)]


@pytest.mark.parametrize("path", [*PAGES, *DEPLOYMENT], ids=name_of)
def test_every_command_of_manage_py_has_the_verbs_and_options_that_are_named(path: Path) -> None:
    text = code(path)
    found = [*commands(text, r"manage\.py"), *commands(text, r"(?m:^manage)")]
    client_calls = commands(text, r"(?m:^(?:fleet|nexmdm))")
    found += [one._replace(name="fleet", words=[one.name, *one.words]) for one in client_calls]
    assert [fault for one in found for fault in unknown_to_manage(one.name, one.words, options(one))] == []


@cache
def options_in(package: str) -> set[str]:
    """Return the options that the modules of a package declare, by their text."""
    text = "".join(path.read_text() for path in (ROOT / package).rglob("*.py"))
    return set(re.findall(r"[\"'](--[a-z][a-z0-9-]*)[\"']", text))


@pytest.mark.parametrize("path", [*PAGES, *DEPLOYMENT], ids=name_of)
def test_every_module_that_is_run_exists_and_has_the_options_that_are_named(path: Path) -> None:
    found = list(commands(code(path), r"python[\d.]*[\"']?,? [\"']?-m"))
    assert [one.name for one in found if find_spec(one.name) is None] == []
    ours = [one for one in found if one.name.startswith("loadtest")]
    assert [(one.name, given) for one in ours for given in options(one) - options_in("loadtest")] == []


@pytest.mark.parametrize("path", [*PAGES, *DEPLOYMENT], ids=name_of)
def test_every_target_of_make_that_is_named_exists(path: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = set(re.findall(r"(?:^|['\"(])make (?:-C \S+ |[A-Z]+=\S+ )*([a-z][a-z-]+)", code(path), re.MULTILINE))
    assert made - targets == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_and_test_of_the_repository_that_is_named_exists(page: Path) -> None:
    found = re.findall(
        r"(?<![\w./-])((?:nexmdm|devices|commands|loadtest|tests|docs)/[\w/.-]+\.\w+)(?:::(\w+))?", code(page)
    )
    assert {path for path, _ in found if not (ROOT / path).exists()} == set()
    assert [test for path, test in found if test and f"def {test}(" not in (ROOT / path).read_text()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_to_a_heading_of_it(page: Path) -> None:
    dead = set()
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = (page.parent / file) if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.add(link)
    assert dead == set()


def test_the_index_lists_every_page_of_the_documents() -> None:
    listed = {(DOCS / link).resolve() for link in links(DOCS / "README.md")}
    listed |= {(DOCS / "decisions" / link).resolve() for link in links(DOCS / "decisions" / "README.md")}
    assert [name_of(page) for page in DOCS.rglob("*.md") if page not in listed | {DOCS / "README.md"}] == []


def test_the_readme_is_two_screens_long() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


def test_the_figures_of_the_readme_are_those_of_the_pages_behind_it() -> None:
    section = (ROOT / "README.md").read_text().split("\n## Figures\n")[1].split("\n## ")[0]
    figures = [cell for row in re.findall(r"^\| .+ \|$", section, re.MULTILINE) for cell in row.split("|")[2:3]]
    numbers = {number for cell in figures for number in re.findall(r"\d[\d.,]*\d|\d", cell)}
    behind = "".join((DOCS / page).read_text() for page in ("performance.md", "reliability.md"))
    assert numbers
    assert {number for number in numbers if not re.search(rf"(?<![\d.,]){re.escape(number)}(?!\d)", behind)} == set()


def test_every_name_of_a_state_is_in_the_glossary() -> None:
    glossary = (DOCS / "glossary.md").read_text()
    choices = (DeliveryState, CommandState, CommandOutcome, PushNow, AttemptOutcome, ReportStatus)
    names = {value for choice in choices for value in choice.values} | {*presences(), *PUSH_HEALTH}
    assert {name for name in names if f"`{name}`" not in glossary} == set()


def test_every_action_has_a_row_on_the_page_of_the_api() -> None:
    section = (OPERATIONS / "http-api.md").read_text().partition("## Actions\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(CATALOGUE)


def test_every_action_is_known_to_the_example_agents_and_on_their_page() -> None:
    known = list(CATALOGUE)
    page = (DOCS / "agent.md").read_text().partition("The agent must know all")[2].partition("  - ")[2]
    assert re.findall(r"`(\w+)`", page.partition("\n")[0]) == known
    for example in ("agent.py", "KitAdapter.kt"):
        actions = (DOCS / "agent" / example).read_text().partition("ACTIONS = ")[2]
        assert re.findall(r'"(\w+)"', re.split(r"[)}]", actions)[0]) == known, example


def test_every_type_of_events_is_on_the_page_of_events() -> None:
    table = (OPERATIONS / "events.md").read_text().partition("| type | when | `data` |\n")[2].partition("\n\n")[0]
    documented = [name for row in table.splitlines() for name in re.findall(r"`([\w.]+)`", row.split("|")[1])]
    assert sorted(documented) == sorted(EventType)


def test_every_scenario_of_the_conformance_kit_is_on_the_page_of_agents_with_its_rule() -> None:
    table = (DOCS / "agent.md").read_text().partition("\n| scenario | the rule |\n")[2]
    rows = re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", table, re.MULTILINE)
    assert rows == [(scenario.name, scenario.promise) for scenario in SCENARIOS.values()]


def test_the_changelog_has_a_section_for_this_version_and_known_headings_only() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    sections = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", changelog, re.MULTILINE)
    assert len(sections) == len(re.findall(r"^## ", changelog, re.MULTILINE))
    assert sections[0] == ("Unreleased", "")
    assert all(date for _, date in sections[1:])
    released = [name for name, _ in sections[1:]]
    assert not released or released[0] == VERSION
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", changelog, re.MULTILINE)) <= kinds


def test_every_page_of_operations_is_reached_from_the_first() -> None:
    first = (OPERATIONS / "README.md").read_text()
    assert [page.name for page in OPERATIONS.glob("*.md") if page.name != "README.md" and page.name not in first] == []


def test_every_fault_that_stops_the_start_is_explained() -> None:
    explained = re.findall(r"^\| `(nexmdm\.\w+)` \|", (OPERATIONS / "checks.md").read_text(), re.MULTILINE)
    assert explained == [*ConfigError, checks.UNCHECKED_CONNECTIONS, *device_checks.WARNINGS]


def test_the_parts_start_by_the_same_commands_everywhere() -> None:
    for part in ("-m nexmdm.web", "manage.py dispatch", "manage.py migrate"):
        files = ["Procfile", "docs/operations/platforms.md"]
        assert [file for file in files if part not in (ROOT / file).read_text()] == []
    for file in ("Dockerfile", "docs/operations/systemd/nexmdm-web@.service"):
        assert re.search(r'-m"?,? "?nexmdm\.web', (ROOT / file).read_text())
