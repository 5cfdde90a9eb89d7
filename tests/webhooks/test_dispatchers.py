"""Webhooks in real dispatcher processes: one that is killed, one that is stopped, one that pushes meanwhile."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import pytest
from django.conf import settings

from loadtest.fake_fcm.server import FcmStandin
from loadtest.testbed.serving import wait_for
from nexmdm.common import database
from nexmdm.common.postgresql import direct
from nexmdm.webhooks import leases
from tests.support import feed
from tests.support.actors import Admin, Phone
from tests.support.processes import ROOT
from tests.webhooks.conftest import Hook
from tests.webhooks.receiver import Received, Receiver, status
from tests.webhooks.test_sending import move_times, tag

pytestmark = pytest.mark.django_db(transaction=True)


@contextmanager
def dispatcher(**variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `manage.py dispatch` on the database of the tests."""
    database.release_connections()
    parameters = direct.parameters()
    url = f"postgresql://{parameters['user']}@/{parameters['dbname']}?host={quote(str(parameters['host']), safe='')}"
    environment = {
        "DATABASE_URL": url,
        "SECRET_KEY": settings.SECRET_KEY,
        "ADMIN_KEY": settings.ADMIN_KEYS[0],
        "HMAC_SECRET": settings.HMAC_SECRETS[0],
        "COMMAND_SIGNING_KEY": settings.COMMAND_SIGNING_KEYS[0],
        "WEBHOOK_ALLOW_PRIVATE": "127.0.0.0/8",
    }
    process = subprocess.Popen(
        [sys.executable, "manage.py", "dispatch"],
        env={**os.environ, **environment, **variables},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_after_kill_9_another_dispatcher_goes_on_and_no_event_is_lost_or_out_of_order(
    admin: Admin, phone: Phone, hook: Hook, receiver: Receiver
) -> None:
    for number in range(6):
        tag(admin, phone, str(number))
    processes: list[subprocess.Popen[bytes]] = []

    def kill_it(handler: Any, received: Received) -> None:
        processes[0].kill()
        handler.close_connection = True

    receiver.state.script = [status(200), status(200), kill_it]
    with dispatcher() as process:
        processes.append(process)
        assert process.wait(20) == -signal.SIGKILL
    assert len(receiver.received) == 3
    move_times(lease_until=leases.LEASE)
    with dispatcher():
        receiver.wait_for(9)
    shown = [event["id"] for event in feed.all_events(admin) if event["type"] == "device.updated"]
    assert receiver.ids == shown[:3] + shown


def test_a_hanging_receiver_delays_no_push_and_no_stop(
    admin: Admin, hook: Hook, receiver: Receiver, fcm: FcmStandin
) -> None:
    phone = admin.enrol("phone-1", push_token="ok-1")
    receiver.state.always = receiver.hang
    account = json.dumps(settings.FIREBASE_SERVICE_ACCOUNT)
    with dispatcher(FIREBASE_SERVICE_ACCOUNT_JSON=account, FCM_BASE_URL=settings.FCM_BASE_URL) as process:
        receiver.wait_for(1)
        admin.command(to=phone)
        wait_for(lambda: len(fcm.journal) == 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(8) == 0
    assert len(receiver.received) == 1
