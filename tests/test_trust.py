"""The table of promises: it names tests that exist, and holds nothing for kept that was not shown."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest import trust
from loadtest.trials import leaks, testrun
from loadtest.trials.finding import Finding
from loadtest.trials.testrun import Case, HeldByTests

ROOT = Path(__file__).resolve().parent.parent
PROMISE = HeldByTests("promise", "tried", ("tests/test_a.py::test_one", "tests/test_b.py"))
PASSED = {
    "tests/test_a.py::test_one[1]": Case(counted=Counter(requests=2)),
    "tests/test_a.py::test_one[2]": Case(counted=Counter(requests=1000)),
    "tests/test_b.py::test_more": Case(),
}


def functions(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_each_test_that_a_promise_names_exists() -> None:
    named = [test for chapter in trust.CHAPTERS for promise in chapter.tested for test in promise.tests]
    assert named
    for test in named:
        file, _, function = test.partition("::")
        assert not function or function in functions(file), test


def test_a_promise_is_held_by_all_its_tests_and_sums_what_they_count() -> None:
    found = PROMISE.finding(PASSED | {"tests/test_a.py::test_one_more": Case("failure: not mine")})
    assert (found.held, found.figure) == (True, "1,002 requests")


@pytest.mark.parametrize(
    "cases",
    [
        {},
        {"tests/test_a.py::test_other": Case()},
        PASSED | {"tests/test_b.py::test_more": Case("failure: 1 != 2")},
        PASSED | {"tests/test_b.py::test_more": Case("skipped: no Chromium")},
    ],
)
def test_a_promise_is_not_held_by_tests_that_fail_are_skipped_or_do_not_run(cases: dict[str, Case]) -> None:
    assert not PROMISE.finding(cases).held


def test_tests_are_run_and_told_apart_by_pytests_own_names(tmp_path: Path) -> None:
    names = (
        "test_a_promise_is_held_by_all_its_tests_and_sums_what_they_count",
        "test_a_leak_is_found_in_each_encoding",
    )
    promises = [HeldByTests("promise", "tried", (f"tests/test_trust.py::{name}",)) for name in names]
    cases = testrun.run(promises, tmp_path)
    assert [promise.finding(cases).figure for promise in promises] == ["1 test", "3 tests"]


def test_a_trial_that_breaks_off_is_a_promise_that_is_not_held(tmp_path: Path) -> None:
    def trial(_: Path) -> Iterator[Finding]:
        yield Finding("first", "tried", "figure", held=True)
        raise RuntimeError("the server is gone")

    first, second = trust.tried(trial, tmp_path)
    assert (first.held, second.held, second.figure) == (True, False, "RuntimeError: the server is gone")


@pytest.mark.parametrize("text", ["so secret-123456!", "\\x7365637265742d31323334353621", "c2VjcmV0LTEyMzQ1NiE="])
def test_a_leak_is_found_in_each_encoding(text: str) -> None:
    evidence = leaks.Evidence(places={"the logs": text, "the metrics": "nothing"})
    evidence.secret("token", "secret-123456!")
    logs, metrics = leaks.findings(evidence)
    assert (logs.held, metrics.held) == (False, True)
    assert logs.figure.startswith("1 × token")
