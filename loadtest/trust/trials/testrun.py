"""The promises of NexMDM that tests in `tests/` check. Hypothesis runs these tests with more examples than in `make
test`.
"""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from loadtest.trust.trials.finding import Finding

PROFILE: Final = "trust"
"""The profile of Hypothesis with many examples, which tests/conftest.py defines."""

_ROOT: Final = Path(__file__).resolve().parent.parent.parent.parent
_LAST_LINES: Final = 40
_SHOWN: Final = 3


class TestsEnded(Exception):
    """pytest ended without a report. The message contains the end of its output."""


@dataclass(frozen=True, slots=True)
class Case:
    """A test that ran.

    - `trouble`: why the test failed or was skipped; empty: the test passed.
    - `counted`: the numbers that the test recorded with pytest's `record_property`.
    """

    trouble: str = ""
    counted: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class HeldByTests:
    """A promise with its tests.

    - `tests`: the names of files or of single tests, in pytest's form.
    - `at_least`: a lower limit by name. A test records numbers under a name (`record_property`), and the sum of the
      numbers of all tests must reach the limit.
    """

    promise: str
    tried: str
    tests: tuple[str, ...]
    at_least: Mapping[str, int] = field(default_factory=dict)

    def finding(self, cases: Mapping[str, Case]) -> Finding:
        """Return the finding of this promise. `cases` contains the tests that ran, by name.

        The promise is kept if each of its tests ran and passed, and if each sum in `at_least` was reached.
        """
        mine = {name: case for name, case in cases.items() if any(_belongs(name, test) for test in self.tests)}
        counted: Counter[str] = Counter()
        for case in mine.values():
            counted.update(case.counted)
        troubles = [f"{name}: {case.trouble}" for name, case in mine.items() if case.trouble]
        troubles += [f"{test} did not run" for test in self.tests if not any(_belongs(name, test) for name in mine)]
        troubles += [f"at least {least:,} {what}" for what, least in self.at_least.items() if counted[what] < least]
        figures = [f"{number:,} {what}" for what, number in (counted or {_tests(mine): len(mine)}).items()]
        figure = ", ".join([*figures, *troubles[:_SHOWN]])
        return Finding(self.promise, self.tried, figure, not troubles)


def run(promises: Iterable[HeldByTests], folder: Path, *options: str) -> dict[str, Case]:
    """Run the tests of all `promises`, each test once. Return the tests that ran, by name.

    `options` are additional options for pytest. Raises TestsEnded.
    """
    tests = dict.fromkeys(test for promise in promises for test in promise.tests)
    report, output = folder / "tests.xml", folder / "tests.txt"
    with output.open("wb") as file:
        subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", f"--hypothesis-profile={PROFILE}"),
                *("-o", "junit_family=xunit1", f"--junitxml={report}", *options, *tests),
            ],
            cwd=_ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if not report.exists():
        raise TestsEnded("\n".join(output.read_text(errors="replace").splitlines()[-_LAST_LINES:]))
    return dict(map(_case, ET.parse(report).iter("testcase")))  # noqa: S314  (pytest has just written it)


def _tests(cases: Mapping[str, Case]) -> str:
    return "test" if len(cases) == 1 else "tests"


def _belongs(name: str, test: str) -> bool:
    return name == test or name.startswith((f"{test}[", f"{test}::"))


def _case(element: ET.Element) -> tuple[str, Case]:
    file = element.get("classname", "").replace(".", "/")
    trouble = next((f"{one.tag}: {one.get('message', '')[:200]}" for one in element if one.tag in _TROUBLES), "")
    properties = element.iterfind("properties/property")
    counted = Counter({one.get("name", ""): int(one.get("value", "0")) for one in properties})
    return f"{file}.py::{element.get('name')}", Case(trouble, counted)


_TROUBLES: Final = ("failure", "error", "skipped")
