"""Test the promises of NexMDM: `python -m loadtest.trust`, or `make trust`.

The program prints a table: each promise, how it was tested, the measured figure, and whether it was kept. The tests of
some promises are in `tests/`, and run here with many more examples. The tests of all other promises are trials against
real servers. The exit status is 0 only if all promises were kept.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loadtest.testbed import pgbouncer, testbed
from loadtest.trust.trials import clock, gone, guard, intruders, rotation, secret_leaks, testrun
from loadtest.trust.trials.finding import Finding, Trial
from loadtest.trust.trials.one_against_all import answer, client, phone
from loadtest.trust.trials.testrun import Case, HeldByTests

NOT_HELD: Final = "NOT HELD"
PLAIN_WIDTH: Final = 160
"""The width of the table if the output is not a terminal, in characters."""

_SIGNING: Final = "tests/auth/test_signing.py"
_REGISTER: Final = "tests/devices/test_register.py"
_CREDENTIALS: Final = "tests/devices/test_credentials.py"


@dataclass(frozen=True, slots=True)
class Chapter:
    """Promises of one kind.

    - `tested`: promises that have tests in `tests/`.
    - `trials`: functions that test further promises against real servers.
    """

    name: str
    tested: Sequence[HeldByTests] = ()
    trials: Sequence[Trial] = ()


CHAPTERS: Final = (
    Chapter(
        "input",
        tested=(
            HeldByTests(
                "no request gets an answer of 500 or above, and each answer matches the OpenAPI document",
                "Schemathesis on each operation, and NUL, lone surrogates, big integers, NaN, depth, duplicate keys",
                ("tests/http/test_hostile_input.py",),
                at_least={"requests": 5000},
            ),
        ),
    ),
    Chapter(
        "guard",
        tested=(
            HeldByTests(
                "a connection that is silent, sends too much or reads nothing is closed; bad HTTP gets problem details",
                "over sockets, with short time-outs",
                ("tests/http/test_protocol.py",),
            ),
        ),
        trials=(guard.trial,),
    ),
    Chapter(
        "signing",
        tested=(
            HeldByTests(
                "a request with one changed bit in its signed content gets 401",
                "bits of headers, method, target and body, of requests of all kinds",
                ("tests/auth/test_signed_bits.py",),
                at_least={"bits changed": 2000},
            ),
            HeldByTests(
                "a timestamp that is ±299 s off is accepted, ±301 s is not; a repeated or non-ASCII header gets 401",
                "frozen clock; each of the four headers",
                (
                    f"{_SIGNING}::test_a_timestamp_within_300_seconds_passes",
                    f"{_SIGNING}::test_a_timestamp_further_off_is_refused",
                    f"{_SIGNING}::test_a_header_missing_wrong_or_repeated_is_refused",
                ),
            ),
            HeldByTests(
                "keys and signatures are compared as bytes, in constant time, with all valid keys and signatures",
                "compare_digest watched while requests are verified",
                (f"{_SIGNING}::test_keys_and_signatures_are_compared_in_constant_time_with_each_that_is_valid",),
            ),
        ),
        trials=(rotation.trial,),
    ),
    Chapter(
        "credentials",
        tested=(
            HeldByTests(
                "a credential of the wrong kind gets 401 on every route",
                "each kind of credential, and no credential, on each operation of the OpenAPI document",
                (f"{_CREDENTIALS}::test_a_credential_of_the_wrong_kind_is_401_on_every_route",),
                at_least={"wrong credentials": 200},
            ),
            HeldByTests(
                "no client takes over an enrolled device without the right to re-enroll",
                "its hardware id with other tokens, before and after its first call; with its own after 15 minutes",
                (
                    f"{_REGISTER}::test_known_hardware_is_refused_without_re_enroll",
                    f"{_REGISTER}::test_an_answer_is_lost_only_to_the_token_that_was_shown_it",
                    f"{_REGISTER}::test_other_clients_with_the_enrollment_token_can_ask_for_a_lost_answer_for_15_minutes",
                    f"{_REGISTER}::test_simultaneous_registrations_of_a_phone_with_two_tokens_make_one_device",
                ),
            ),
            HeldByTests(
                "a device can neither read nor answer the commands of another device",
                "commands, reports and rotation of another device; tokens made of parts of both devices' tokens",
                (f"{_CREDENTIALS}::test_a_device_cannot_read_or_answer_commands_of_another_one",
                 f"{_CREDENTIALS}::test_a_token_with_parts_of_two_devices_is_invalid"),
            ),
            HeldByTests(
                "X-Forwarded-For and X-Forwarded-Proto change nothing unless the peer is trusted",
                "both headers, from trusted peers and from other peers",
                (
                    "tests/http/test_problems.py::test_without_trusted_proxies_the_address_is_the_peers",
                    "tests/http/test_problems.py::test_forwarded_addresses_are_ignored_unless_the_peer_is_trusted",
                    "tests/http/test_problems.py::test_a_trusted_proxy_names_the_nearest_address_that_is_not_one",
                    f"{_CREDENTIALS}::test_only_a_trusted_proxy_can_set_the_scheme_to_https",
                ),
            ),
        ),
        trials=(intruders.trial,),
    ),
    Chapter(
        "secrets",
        tested=(
            HeldByTests(
                "the log line of a database error names the error, but no value of the row",
                "rows that contain push tokens, and that PostgreSQL refuses",
                ("tests/http/test_logs.py",),
            ),
        ),
        trials=(secret_leaks.trial,),
    ),
    Chapter("gone", trials=(gone.trial,)),
    Chapter("one against all", trials=(phone.trial, client.trial, answer.trial)),
    Chapter(
        "clock",
        tested=(
            HeldByTests(
                "only the modules that need the application's clock read it",
                "a search of every module",
                ("tests/project/test_architecture.py::test_only_a_few_modules_read_the_applications_clock",),
            ),
        ),
        trials=(clock.trial,),
    ),
    Chapter(
        "start",
        tested=(
            HeldByTests(
                "an invalid configuration stops the start, with an id and a hint",
                "DEBUG; missing, short and placeholder secrets; caches that cannot count; connections; a bad account",
                ("tests/servers/test_checks.py", "tests/project/test_environment.py"),
            ),
        ),
    ),
    Chapter(
        "upgrade",
        tested=(
            HeldByTests(
                "migrations work with and without data, take no long lock, and let old code continue to write",
                "each migration's SQL, and rows as the version before writes them",
                ("tests/project/test_migrations.py",),
            ),
        ),
    ),
    Chapter(
        "operations",
        tested=(
            HeldByTests(
                "a backup can be restored, and the restored server works",
                "the commands of backup.md as printed; rows counted; a heartbeat",
                ("tests/servers/test_backup.py",),
            ),
            HeldByTests(
                "each command, setting and make target in the documents exists, and each setting is documented",
                "a search of every page",
                ("tests/project/test_documents.py",),
            ),
        ),
    ),
)  # fmt: skip


def main() -> int:
    """Test the promises of the chosen chapters, and print a table. Return 0 if all promises were kept, else 1."""
    chapters, pooler = _chosen()
    testbed.BEHIND_A_POOLER.set(pooler)
    console, began_at = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH), time.monotonic()
    table = Table(box=box.HORIZONTALS, show_lines=True, expand=True)
    for name in ("promise", "tried", "figure"):
        table.add_column(name, ratio=1)
    table.add_column("", min_width=len(NOT_HELD))
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as folder:
        for name, found in _findings(chapters, Path(folder), console, pooler=pooler):
            findings.append(found)
            _say(console, name, found)
    for one in findings:
        table.add_row(one.promise, one.tried, one.figure, _word(one))
    console.print(table)
    missed = sum(not one.held for one in findings)
    minutes = (time.monotonic() - began_at) / 60
    verdict = f"{missed} not kept" if missed else "all kept"
    console.print(f"{len(findings)} promises in {minutes:.1f} minutes: {verdict}.", highlight=False)
    return 1 if missed or not findings else 0


def _chosen() -> tuple[Sequence[Chapter], bool]:
    parser = argparse.ArgumentParser(prog="python -m loadtest.trust", description=__doc__)
    names = [chapter.name for chapter in CHAPTERS]
    parser.add_argument(
        "chapters", nargs="*", metavar="CHAPTER", help=f"some of {', '.join(names)}; default: all of them"
    )
    parser.add_argument("--pooler", action="store_true", help="reach all databases through a PgBouncer")
    arguments = parser.parse_args()
    asked = arguments.chapters or names
    if unknown := set(asked) - set(names):
        parser.error(f"there is no chapter {', '.join(sorted(unknown))}")
    if arguments.pooler and pgbouncer.program() is None:
        parser.error(pgbouncer.MISSING)
    return [chapter for chapter in CHAPTERS if chapter.name in asked], arguments.pooler


def _findings(
    chapters: Sequence[Chapter], folder: Path, console: Console, *, pooler: bool
) -> Iterator[tuple[str, Finding]]:
    tested = [promise for chapter in chapters for promise in chapter.tested]
    cases: dict[str, Case] = {}
    if tested:
        console.print(f"Running the tests of {len(tested)} promises …", highlight=False)
        cases = testrun.run(tested, folder, *(["--pooler"] if pooler else []))
    for chapter in chapters:
        for promise in chapter.tested:
            yield chapter.name, promise.finding(cases)
        for number, trial in enumerate(chapter.trials):
            place = folder / f"{chapter.name.replace(' ', '-')}-{number}"
            place.mkdir()
            for finding in tried(trial, place):
                yield chapter.name, finding


def tried(trial: Trial, folder: Path) -> Iterator[Finding]:
    """Yield the findings of a trial. If an error ends the trial, yield a finding about this error."""
    try:
        yield from trial(folder)
    except Exception as error:  # noqa: BLE001  (the other trials must still run)
        promise = (sys.modules[trial.__module__].__doc__ or "").partition("\n")[0]
        yield Finding(promise, "ended with an error", f"{type(error).__name__}: {error}", held=False)


def _say(console: Console, name: str, found: Finding) -> None:
    console.print(Text.assemble((f"{name}: ", "dim"), found.promise, " · ", found.figure, " · ", _word(found)))


def _word(found: Finding) -> Text:
    return Text("kept", style="green") if found.held else Text(NOT_HELD, style="bold red")


if __name__ == "__main__":
    sys.exit(main())
