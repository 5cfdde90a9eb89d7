"""The log of heartbeats: a line for each, or one line every ten seconds if HEARTBEAT_LOG is `summary`."""

import asyncio
import json
from io import BytesIO
from typing import Any
from unittest.mock import Mock
from uuid import UUID

import pytest
import structlog
from asgiref.sync import async_to_sync
from pytest_django import Settings

from devices import tokens
from nexmdm.http import heartbeat_summary
from nexmdm.http.heartbeat_summary import HeartbeatSummary
from nexmdm.monitoring import metrics
from tests.support.actors import Admin, Phone


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> BytesIO:
    """The log lines of heartbeats."""
    written = BytesIO()
    for module in ("devices.check_in", "nexmdm.http.heartbeat_summary"):
        monkeypatch.setattr(f"{module}.log", structlog.wrap_logger(structlog.BytesLogger(written)))
    return written


def lines(written: BytesIO) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in written.getvalue().splitlines()]
    return [line for line in found if line["event"].startswith("heartbeat.")]


def test_each_heartbeat_leaves_a_line_and_there_is_no_summary(phone: Phone, written: BytesIO) -> None:
    with heartbeat_summary.lines():
        for _ in range(3):
            phone.heartbeat()
    assert [line["event"] for line in lines(written)] == ["heartbeat.upsert"] * 3


def test_a_summary_has_the_count_the_verdicts_and_the_time_of_the_heartbeats_since_the_last_one(
    admin: Admin, phone: Phone, settings: Settings, written: BytesIO
) -> None:
    settings.HEARTBEAT_LOG = "summary"
    revoked = admin.enrol("phone-2")
    admin.post(f"/admin/devices/{revoked.device_id}/revoke")
    phone.heartbeat()
    summary = HeartbeatSummary()
    for _ in range(3):
        phone.heartbeat()
    revoked.heartbeat()
    phone.send("/v1/heartbeat", {}, tokens.make(tokens.DEVICE_PREFIX, UUID(phone.device_id), bytes(32)).text)
    summary.write()
    (line,) = lines(written)
    assert (line["event"], line["level"]) == ("heartbeat.summary", "info")
    assert (line["count"], line["verdicts"]) == (5, {"good": 3, "DeviceRevoked": 1, "InvalidToken": 1})
    assert 0 < line["p95_ms"] <= 1000 * metrics.BUCKETS[-1]
    assert line["seconds"] >= 0


def test_single_heartbeats_are_logged_at_debug_if_there_is_a_summary(
    phone: Phone, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Mock()
    monkeypatch.setattr("devices.check_in.log", log)
    settings.HEARTBEAT_LOG = "summary"
    phone.heartbeat()
    log.debug.assert_called_once_with("heartbeat.upsert", device_id=phone.device_id, commands=0)
    log.info.assert_not_called()


def test_a_worker_writes_a_summary_again_and_again_and_the_last_one_when_it_stops(
    phone: Phone, settings: Settings, written: BytesIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexmdm.http.heartbeat_summary.SECONDS", 0)
    settings.HEARTBEAT_LOG = "summary"
    bearer = {"Authorization": f"Bearer {phone.device_token}"}

    async def worker() -> None:
        with heartbeat_summary.lines():
            for count in (1, 2):
                await phone.client.arequest("POST", "/v1/heartbeat", {}, bearer)
                async with asyncio.timeout(10):
                    while len(lines(written)) < count:  # noqa: ASYNC110  (a log line has no event)
                        await asyncio.sleep(0)
            monkeypatch.setattr("nexmdm.http.heartbeat_summary.SECONDS", 60)
            await asyncio.sleep(0)
            await phone.client.arequest("POST", "/v1/heartbeat", {}, bearer)

    async_to_sync(worker)()
    assert [line["count"] for line in lines(written)] == [1, 1, 1]


def test_nothing_is_written_while_there_are_no_heartbeats(db: None, settings: Settings, written: BytesIO) -> None:
    settings.HEARTBEAT_LOG = "summary"
    HeartbeatSummary().write()
    assert lines(written) == []


@pytest.mark.parametrize(
    ("answered", "p95"),
    [
        ([100, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0.0019),
        ([90, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0.0035),
        ([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], 30),
        ([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0.002),
    ],
)
def test_the_p95_is_computed_from_the_buckets_as_prometheus_does(answered: list[int], p95: float) -> None:
    assert heartbeat_summary._quantile(answered, 0.95) == pytest.approx(p95)
