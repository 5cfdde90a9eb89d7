"""Many logins to the admin site at the same moment, on a real server: the control loop is not affected."""

import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import httpx
import pytest

from loadtest.testbed import testbed
from loadtest.testbed.serving import Serving
from nexmdm.client.http_client import FleetClient

CLIENTS, ATTEMPTS, ADDRESSES = 24, 2, 8
LOGIN: Final = "/django-admin/login/"
PROBLEM: Final = "application/problem+json"


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    with (
        tempfile.TemporaryDirectory(prefix="nexmdm-") as folder,
        testbed.served(Path(folder) / "data", ADMIN_READ_RATE_LIMIT="100000/m") as serving,
    ):
        yield serving


def enrolled(admin: FleetClient) -> dict[str, str]:
    """Register a phone, and return its credential as headers."""
    token = admin.post("/admin/enrollment-tokens", {})["enrollment_token"]
    headers = {"Authorization": f"Bearer {token}"}
    answer = httpx.post(f"{admin.url}/v1/register", json={"hardware_id": token[-16:]}, headers=headers)
    return {"Authorization": f"Bearer {answer.raise_for_status().json()['device_token']}"}


def log_in(url: str, number: int) -> list[httpx.Response]:
    """Fill in the form a few times as a browser does, for a user that does not exist; return the answers."""
    transport = httpx.HTTPTransport(local_address=f"127.0.0.{1 + number % ADDRESSES}")
    with httpx.Client(base_url=url, transport=transport, timeout=60, headers={"Origin": url}) as browser:
        answers = [browser.get(LOGIN)]
        if token := re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', answers[0].text):
            words = {"username": f"nobody-{number}", "password": "wrong", "csrfmiddlewaretoken": token[1]}
            answers += [browser.post(LOGIN, data=words) for _ in range(ATTEMPTS)]
        return answers


def open_with_a_made_up_session(url: str, number: int) -> list[httpx.Response]:
    with httpx.Client(base_url=url, timeout=60, cookies={"sessionid": f"{number:032}"}) as browser:
        return [browser.get("/django-admin/") for _ in range(5)]


@pytest.mark.parametrize("client", [log_in, open_with_a_made_up_session])
def test_the_api_continues_and_every_answer_of_the_site_is_a_page_or_a_problem(
    serving: Serving, client: Callable[[str, int], list[httpx.Response]]
) -> None:
    calls = 0
    with serving.admin() as admin, httpx.Client(base_url=serving.url) as phone, ThreadPoolExecutor(CLIENTS) as threads:
        credential = enrolled(admin)
        answers = [threads.submit(client, serving.url, number) for number in range(CLIENTS)]
        while not all(answer.done() for answer in answers):
            assert phone.post("/v1/heartbeat", json={}, headers=credential).status_code == 200
            assert admin.get("/admin/summary")["devices"]
            calls += 1
    seen = {(one.status_code, kind_of(one)) for answer in answers for one in answer.result()}
    assert seen <= {(200, "text/html"), (302, "text/html"), (429, PROBLEM), (503, PROBLEM)}
    assert calls > 1
    assert "Traceback" not in serving.said


def kind_of(answer: httpx.Response) -> str:
    return answer.headers["content-type"].partition(";")[0]
