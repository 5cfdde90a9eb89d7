"""The server keeps nothing of an answered request, and knows whether its client still waits."""

import asyncio
import gc
import json
import threading
from typing import Any, Final

import pytest
from django.db import connection

from commands.models import Delivery
from nexmdm.common.request_facts import RequestFacts
from tests.http.test_connection_bounds import another, until_open
from tests.http.test_protocol import Line, over_a_socket
from tests.support.actors import Admin, Phone

ROUNDS: Final = 20


def request_of(phone: Phone, path: str, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Authorization: Bearer {phone.device_token}",
        f"Content-Length: {len(content)}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def facts() -> int:
    """Return the number of requests that still have facts in memory."""
    return sum(isinstance(one, RequestFacts) for one in gc.get_objects())


@pytest.mark.parametrize("path", ["/v1/heartbeat", "/v1/action-result"])
def test_an_answered_request_is_freed_without_the_garbage_collector(admin: Admin, path: str) -> None:
    phone = admin.enrol("X1")
    body: dict[str, Any] = {}
    if path == "/v1/action-result":
        body = {"request_id": admin.command(to=[phone]).json["request_id"], "status": "succeeded"}

    async def talk(line: Line) -> int:
        await line.say(request_of(phone, path, body))
        assert (await line.answer()).status == 200
        gc.collect()
        before = facts()
        gc.disable()
        try:
            for _ in range(ROUNDS):
                await line.say(request_of(phone, path, body))
                assert (await line.answer()).status == 200
            return facts() - before
        finally:
            gc.enable()

    assert over_a_socket(talk) < ROUNDS / 2


def test_a_report_is_not_recorded_for_a_client_that_left_before_its_turn(admin: Admin) -> None:
    first, second = admin.enrol("X1"), admin.enrol("X2")
    request_id = admin.command(to=[first, second]).json["request_id"]
    body = {"request_id": request_id, "status": "succeeded"}
    began, may_end = threading.Event(), threading.Event()

    def hold(execute: Any, *arguments: Any) -> Any:
        began.set()
        assert may_end.wait(10)
        return execute(*arguments)

    async def talk(line: Line) -> int:
        await line.say(request_of(first, "/v1/action-result", body))
        await asyncio.to_thread(began.wait, 10)
        async with another(line) as leaving:
            await leaving.say(request_of(second, "/v1/action-result", body))
            while len(line.state.tasks) != 2:  # noqa: ASYNC110  (uvicorn has no event for it)
                await asyncio.sleep(0)
        await until_open(line, 1)
        may_end.set()
        status = (await line.answer()).status
        await asyncio.gather(*line.state.tasks)
        return status

    with connection.execute_wrapper(hold):
        assert over_a_socket(talk) == 200
    states = dict(Delivery.objects.values_list("device__hardware_id", "state"))
    assert states == {"X1": "succeeded", "X2": "pending"}
