"""The table of promises: it names existing tests, and shows no promise as kept without proof."""

import ast
import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import httpx
import pytest

from loadtest.testbed.connections import NO_ANSWER, Pool, Server, with_body
from loadtest.trust import promises
from loadtest.trust.trials import rotation, secret_evidence, secret_leaks, secret_search, testrun
from loadtest.trust.trials.finding import Finding
from loadtest.trust.trials.rotation import Borne
from loadtest.trust.trials.testrun import Case, HeldByTests

ROOT = Path(__file__).resolve().parent.parent.parent
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
    named = [test for chapter in promises.CHAPTERS for promise in chapter.tested for test in promise.tests]
    assert named
    for test in named:
        file, _, function = test.partition("::")
        assert not function or function in functions(file), test


def test_a_promise_requires_all_its_tests_and_adds_up_their_counts() -> None:
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
def test_a_promise_is_not_kept_if_tests_fail_are_skipped_or_do_not_run(cases: dict[str, Case]) -> None:
    assert not PROMISE.finding(cases).held


@pytest.mark.parametrize(("least", "held"), [(1002, True), (1003, False)])
def test_a_promise_of_a_number_requires_that_number(least: int, held: bool) -> None:
    promise = HeldByTests("promise", "tried", PROMISE.tests, at_least={"requests": least})
    found = promise.finding(PASSED)
    assert (found.held, "at least 1,003 requests" in found.figure) == (held, not held)
    assert not promise.finding(dict.fromkeys(PASSED, Case())).held


def test_a_promise_is_not_kept_if_one_of_its_tests_did_not_run() -> None:
    found = PROMISE.finding({"tests/test_b.py::test_more": Case()})
    assert (found.held, found.figure) == (False, "1 test, tests/test_a.py::test_one did not run")


def test_tests_are_run_and_identified_by_pytests_own_names(tmp_path: Path) -> None:
    names = (
        "test_a_promise_requires_all_its_tests_and_adds_up_their_counts",
        "test_a_leak_is_found_in_each_encoding",
    )
    promises = [HeldByTests("promise", "tried", (f"tests/loadtest/test_trust.py::{name}",)) for name in names]
    cases = testrun.run(promises, tmp_path)
    assert [promise.finding(cases).figure for promise in promises] == ["1 test", "3 tests"]


def test_a_trial_that_fails_is_a_promise_that_is_not_kept(tmp_path: Path) -> None:
    def trial(_: Path) -> Iterator[Finding]:
        yield Finding("first", "tried", "figure", held=True)
        raise RuntimeError("the server is gone")

    first, second = promises.tried(trial, tmp_path)
    assert (first.held, second.held, second.figure) == (True, False, "RuntimeError: the server is gone")


@pytest.mark.parametrize("text", ["so secret-123456!", "\\x7365637265742d31323334353621", "c2VjcmV0LTEyMzQ1NiE="])
def test_a_leak_is_found_in_each_encoding(text: str) -> None:
    evidence = secret_evidence.Evidence(places={"the logs": text, "the metrics": "nothing"})
    evidence.secret("token", "secret-123456!")
    logs, metrics = secret_leaks.findings(evidence)
    assert (logs.held, metrics.held) == (False, True)
    assert logs.figure.startswith("1 × token")


def complete() -> secret_evidence.Evidence:
    evidence = secret_evidence.Evidence(
        errors=[f"{status} {{}}" for status in secret_leaks.STATUSES], pushed=set(secret_leaks.PUSH_WORDS)
    )
    evidence.exports = {f"/django-admin/list-{number}/export/" for number in range(secret_search.EXPORTS)}
    for kind in secret_leaks.KINDS:
        evidence.secret(kind, kind)
    return evidence


def test_a_search_is_complete_after_every_error_with_every_secret() -> None:
    assert secret_leaks.provoked(complete()).held


@pytest.mark.parametrize("missing", ["no 503", "no push answered quota", "no session cookie", "5 of 6 exports"])
def test_a_search_with_less_is_not_complete(missing: str) -> None:
    evidence = complete()
    if missing == "no 503":
        evidence.errors.remove("503 {}")
    if missing == "no push answered quota":
        evidence.pushed.remove("quota")
    if missing == "no session cookie":
        del evidence.secrets["session cookie"]
    if missing == "5 of 6 exports":
        evidence.exports.pop()
    found = secret_leaks.provoked(evidence)
    assert (found.held, found.figure) == (False, missing)


def test_links_of_the_admin_site_are_followed_but_not_to_other_sites() -> None:
    text = """
        <a href="export/?q=a&amp;state=open">CSV</a> <a href="?page=2#top">Older</a> <a href="#filter">Filter</a>
        <a href="/django-admin/devices/">Devices</a> <a href="/django-admin/logout/">Out</a> <a href="/docs">API</a>
        <a href="https://example.com/django-admin/">Elsewhere</a>
    """
    request = httpx.Request("GET", "http://127.0.0.1/django-admin/commands/?q=a")
    assert list(secret_search.links(httpx.Response(200, text=text, request=request))) == [
        "/django-admin/commands/export/?q=a&state=open",
        "/django-admin/commands/?page=2",
        "/django-admin/commands/?q=a",
        "/django-admin/devices/",
    ]


class Closing:
    """A server that closes its first connection after one answer: while it is idle, or when the next request comes."""

    def __init__(self, *, idle: bool) -> None:
        self._idle = idle
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self.address = Server.of(f"http://127.0.0.1:{self._listening.getsockname()[1]}")
        self.closed = threading.Event()
        self.heard = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def _serve(self) -> None:
        with suppress(OSError):
            first, _ = self._listening.accept()
            with first:
                self._answer(first)
                if not self._idle:
                    self._hear(first)
            self.closed.set()
            second, _ = self._listening.accept()
            with second:
                self._answer(second)

    def _answer(self, connection: socket.socket) -> None:
        self._hear(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    def _hear(self, connection: socket.socket) -> None:
        assert connection.recv(4096)
        self.heard += 1


async def two_requests(server: Closing, *, strict: bool, once_closed: bool = False) -> tuple[list[int], int]:
    """Send two requests over a pool of one connection; return their answers, and the number of requests that used
    another connection.
    """
    pool = Pool(server.address, 1, strict=strict)
    request = server.address.head("POST", "/v1/heartbeat", {}) + with_body(b"")
    first, _ = await pool.call(request)
    if once_closed:
        server.closed.wait()  # The event loop stands still, so that the client has not noticed the close.
    second, _ = await pool.call(request)
    pool.close()
    return [first, second], pool.left


def test_a_request_that_is_cut_after_it_was_written_has_failed_and_is_not_sent_again() -> None:
    with Closing(idle=False) as server:
        assert asyncio.run(two_requests(server, strict=True)) == ([200, NO_ANSWER], 0)
    assert server.heard == 2


def test_a_request_on_a_closed_connection_uses_another_and_is_counted() -> None:
    with Closing(idle=True) as server:
        assert asyncio.run(two_requests(server, strict=True, once_closed=True)) == ([200, 200], 1)
    assert server.heard == 2


def test_a_load_test_sends_a_cut_request_once_more() -> None:
    with Closing(idle=False) as server:
        assert asyncio.run(two_requests(server, strict=False)) == ([200, 200], 0)
    assert server.heard == 3


@pytest.mark.parametrize(
    ("borne", "refused", "held"),
    [
        (Borne(5000, 500, 3, Counter()), "401", True),
        (Borne(5000, 500, 0, Counter({"connection lost": 1})), "401", False),
        (Borne(5000, 500, 0, Counter()), "200", False),
        (Borne(5000, 0, 0, Counter()), "401", False),
        (Borne(0, 500, 0, Counter()), "401", False),
    ],
)
def test_a_rotation_requires_enough_requests_of_both_kinds_and_no_failure(
    borne: Borne, refused: str, held: bool
) -> None:
    assert rotation.found(borne, refused).held == held
