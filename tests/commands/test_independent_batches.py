"""Heartbeats and reports do not wait for each other: each group commit has its own thread and connection."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import transaction

from commands import report_intake
from commands.models import Delivery
from devices import check_in
from devices.models import Presence
from nexmdm.common import group_commit
from tests.support.actors import Admin, Answer, Client, Phone
from tests.support.moments import releasing_connection, waiting


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("locked", "waits", "goes_on"),
    [(Delivery, "/v1/action-result", "/v1/heartbeat"), (Presence, "/v1/heartbeat", "/v1/action-result")],
)
def test_a_batch_does_not_wait_for_the_lock_of_another_batch(
    admin: Admin, phone: Phone, monkeypatch: pytest.MonkeyPatch, locked: Any, waits: str, goes_on: str
) -> None:
    phone.heartbeat()  # The first request stores the first use of its token in its device's row.
    monkeypatch.setattr(group_commit, "HAS_OWN_THREAD", True)
    request_id = admin.command(to=phone).json["request_id"]
    bodies = {"/v1/heartbeat": {}, "/v1/action-result": {"request_id": request_id, "status": "running"}}

    async def post(target: str) -> Answer:
        headers = {"Authorization": f"Bearer {phone.device_token}"}
        return await Client().arequest("POST", target, bodies[target], headers)

    async def talk(let_go: Callable[[], None]) -> tuple[Answer, Answer]:
        held_up = asyncio.create_task(post(waits))
        try:
            while not await sync_to_async(waiting)():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            answer = await post(goes_on)
            assert not held_up.done()
        finally:
            let_go()
            late_answer = await held_up
            await asyncio.gather(check_in.batcher().drain(), report_intake.batcher().drain())
        return answer, late_answer

    with ThreadPoolExecutor(1) as threads:
        holder = _Holder(locked)
        holding = threads.submit(releasing_connection, holder.hold)
        assert holder.is_holding.wait(5)
        answers = async_to_sync(talk)(holder.may_let_go.set)
        holding.result()
    assert [answer.status for answer in answers] == [200, 200]


class _Holder:
    """Locks the rows of a table in a transaction of another thread, until it is released."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.is_holding = threading.Event()
        self.may_let_go = threading.Event()

    def hold(self) -> None:
        with transaction.atomic():
            list(self._model.objects.select_for_update())
            self.is_holding.set()
            self.may_let_go.wait(10)
