"""The worked examples of CONTRIBUTING.md: all diffs apply to a copy of the repository, and their commands pass."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.documents import BLOCK
from tests.support.processes import ROOT

PAGE: Final = (ROOT / "CONTRIBUTING.md").read_text()
RECIPES: Final = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
PYTHON: Final = ".venv/bin/python "
NOT_COPIED: Final = shutil.ignore_patterns(".git", ".venv", ".nexmdm*", ".mypy_cache", ".hypothesis", "reports")
OF_THIS_RUN: Final = ("NEXMDM_", "PYTEST_", "DATABASE_URL", "BCRYPT_")
"""The prefixes of variables that tests/support/environment.py and pytest set for this process."""

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="the diffs are applied by git")


def blocks(text: str, language: str) -> list[str]:
    return [found for _, name, found in BLOCK.findall(text) if name == language]


def diffs() -> dict[str, str]:
    """Return the diff of each recipe by its heading."""
    return {recipe.partition("\n")[0]: "".join(blocks(recipe, "diff")) for recipe in RECIPES if blocks(recipe, "diff")}


def commands() -> list[str]:
    """Return the commands of the recipes that have a diff."""
    shown = "".join("".join(blocks(recipe, "sh")) for recipe in RECIPES if blocks(recipe, "diff"))
    return shown.splitlines()


@pytest.fixture
def copy() -> Iterator["Copy"]:
    """A copy of the repository with an environment, and no database yet.

    (Not in pytest's own folder: another pytest that starts would close it for PostgreSQL's account.)
    """
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as name:
        folder = Path(name) / "nexmdm"
        shutil.copytree(ROOT, folder, ignore=NOT_COPIED)
        (folder / ".venv").symlink_to(sys.prefix)
        made = Copy(folder)
        yield made
        made.run(f"{PYTHON}manage.py postgres stop")


class Copy:
    """A copy of the repository in which commands run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OF_THIS_RUN)}
        self.environment = kept | {
            "NEXMDM_TEST_DATA_DIR": str(folder / ".nexmdm"), "GIT_CEILING_DIRECTORIES": str(folder.parent),
        }  # fmt: skip

    def run(self, command: str, given: str = "") -> str:
        """Run a shell command in the copy and return its output; it must succeed."""
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self.folder,
            env=self.environment,
            input=given,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}{done.stderr}"
        return done.stdout


def test_every_recipe_for_a_change_has_an_example() -> None:
    changes = [recipe.partition("\n")[0] for recipe in RECIPES if recipe.startswith(("Add ", "Cut "))]
    assert changes == list(diffs())
    assert len(changes) == 6


def chosen_by(test: str) -> list[str]:
    """Return the words after `-k` in a call of pytest."""
    found = re.search(r'-k (?:"(.+)"|(\w+))$', test)
    assert found, f"{test}: -k is missing"
    return (found[1] or found[2]).split(" or ")


def one_run_of(tests: list[str]) -> str:
    """Return one call of pytest for the tests of several calls, so that pytest starts only once."""
    variables = "".join(found[0] for test in tests if (found := re.match(r"[A-Z_]+=\S+ ", test)))
    files = sorted({file for test in tests for file in re.findall(r"tests/\S+", test)})
    words = " or ".join(word for test in tests for word in chosen_by(test))
    return f'{variables}{PYTHON}-m pytest -p no:cacheprovider -v {" ".join(files)} -k "{words}"'


def test_the_examples_apply_to_this_repository_and_their_commands_pass(copy: Copy) -> None:
    for diff in diffs().values():
        for of_one_file in re.split(r"^(?=--- a/)", diff, flags=re.MULTILINE)[1:]:
            copy.run("git apply --recount --whitespace=nowarn -", of_one_file)
    changed = set(re.findall(r"^\+\+\+ b/(.+\.py)$", "".join(diffs().values()), re.MULTILINE))
    for verb in ("check", "format --check"):
        copy.run(f"{PYTHON}-m ruff {verb} --no-cache {' '.join(changed)}")
    tests = [command for command in commands() if f"{PYTHON}-m pytest" in command]
    for command in commands():
        if command not in tests and "postgres stop" not in command:
            copy.run(command)
    passed = re.findall(r"::(.+) PASSED", copy.run(one_run_of(tests)))
    words = [word for test in tests for word in chosen_by(test)]
    assert [word for word in words if not any(word in name for name in passed)] == []
