"""What the documents and deployment files name exists, and what exists is documented."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest
from django.core.management import get_commands

from commands.models import FCM_ERRORS
from devices.identity import device_checks
from nexmdm.config import checks
from nexmdm.config.environment import ConfigError
from tests.support.processes import ROOT

OPERATIONS: Final = ROOT / "docs" / "operations"
DEPLOYMENT: Final = [
    *(ROOT / name for name in ("Dockerfile", "compose.yaml", "Procfile", ".replit", "Makefile")),
    *sorted(OPERATIONS.glob("systemd/*")),
    *sorted(OPERATIONS.glob("proxy/*")),
]
PAGES: Final = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "loadtest").glob("*.md")])

OF_OTHERS: Final = {
    "POSTGRES_DB", "POSTGRES_PASSWORD", "POSTGRES_USER", "RESTORED_URL", "NEXMDM_LISTEN_FD", "NEXMDM_TEST_DATA_DIR",
}  # fmt: skip
"""Names in the documents that are no settings: the database image's, a shell's, a parent's word to its child."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def code(page: Path) -> str:
    """Return what a page shows as code; of any other file, all of it."""
    text = page.read_text()
    if page.suffix != ".md":
        return text
    return "\n".join(block or span for block, span in re.findall(r"```\w*\n(.*?)```|`([^`\n]+)`", text, re.DOTALL))


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


def settings_of_the_readme() -> str:
    return (ROOT / "README.md").read_text().split("\n## Settings\n")[1].split("\n## ")[0]


def test_every_setting_is_in_the_readme_and_nothing_else() -> None:
    rows = re.findall(r"^\| (`[A-Z].*?) \|", settings_of_the_readme(), re.MULTILINE)
    documented = set(re.findall(r"`([A-Z_]+)`", " ".join(rows)))
    assert documented == variables()


@pytest.mark.parametrize("path", [*DEPLOYMENT, *OPERATIONS.glob("*.md")], ids=name_of)
def test_every_variable_that_operators_are_told_to_set_is_one(path: Path) -> None:
    text = code(path)
    named = set(re.findall(r"(?:^|[\s\"'])([A-Z]+_[A-Z_]+)\s?[=:]", text, re.MULTILINE))
    named |= set(re.findall(r"^([A-Z]+_[A-Z_]+)$", text, re.MULTILINE))
    makefile = set(re.findall(r"^([A-Z_]+) [:?]?=", text, re.MULTILINE)) if path.name == "Makefile" else set()
    assert named - variables() - OF_OTHERS - makefile - set(FCM_ERRORS) == set()


@pytest.mark.parametrize("path", [*PAGES, *DEPLOYMENT], ids=name_of)
def test_every_command_that_is_named_exists(path: Path) -> None:
    text = code(path)
    managed = set(re.findall(r"(?:manage\.py\"?,?|^manage) \"?([a-z][a-z_]+)", text, re.MULTILINE))
    assert managed - set(get_commands()) == set()
    modules = set(re.findall(r"-m\"?,? \"?((?:nexmdm|loadtest)\.[a-z_.]+)", text))
    assert {module for module in modules if find_spec(module) is None} == set()
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = set(re.findall(r"^make (?:-C \S+ )?([a-z][a-z-]+)", text, re.MULTILINE))
    assert made - targets == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    links = set(re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()))
    assert {link for link in links if not (page.parent / link).exists()} == set()


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
