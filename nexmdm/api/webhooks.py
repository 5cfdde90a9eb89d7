"""The endpoints of webhooks."""

import asyncio
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final
from urllib.parse import urlsplit
from uuid import UUID

import orjson
from django.http import HttpRequest, HttpResponse
from ninja import Query
from pydantic import AfterValidator, Field, StrictBool, StringConstraints

from nexmdm.api.events import After, first_place
from nexmdm.audit.summary import Summary, body_of, by_path, target_text
from nexmdm.auth.admin_router import AdminRouter, summarized
from nexmdm.auth.signed_write import WriteResult, caller_of
from nexmdm.common import database, shutdown
from nexmdm.common.database import run_in_db_thread
from nexmdm.common.pagination import Page
from nexmdm.common.types import STORABLE_TEXT, Body, EmptyBody, ResponseSchema, Tag, Text, Time, respond, rfc3339
from nexmdm.events import event_types
from nexmdm.models import Webhook, WebhookAttempt
from nexmdm.monitoring import dispatcher_status
from nexmdm.webhooks import destinations, leases, queries, signatures, status

router = AdminRouter(tags=["webhooks"])

TEST_SECONDS: Final = 12
"""How long the answer waits for the attempt of a test, in seconds. A receiver has 10 s for its response."""

POLL_SECONDS: Final = 0.25

ID: Final = "webhook_id"


def _url(text: str) -> str:
    destinations.parse(text)
    return text


Url = Annotated[
    str,
    StringConstraints(min_length=1, max_length=destinations.LONGEST_URL),
    STORABLE_TEXT,
    AfterValidator(_url),
    Field(description="An https URL without user, password and fragment, whose host is not private."),
]
Types = Annotated[
    list[Annotated[str, StringConstraints(max_length=32), AfterValidator(event_types.check_name)]],
    Field(max_length=64, fail_fast=True, description="Types of events, or beginnings such as `device.*`. Empty: all."),
]
Tags = Annotated[
    list[Tag],
    Field(
        max_length=64,
        fail_fast=True,
        description="Only events about devices that have one of these tags when the event is sent. Empty: all events.",
    ),
]


class NewWebhook(Body):
    """The settings of a new webhook."""

    url: Url
    types: Types = []
    tags: Tags = []
    description: Annotated[Text, Field(max_length=200)] = ""


class WebhookChange(Body):
    """The changed settings of a webhook. A setting that is not sent stays as it is."""

    url: Url = Field(default_factory=str)
    types: Types = []
    tags: Tags = []
    paused: StrictBool = False


class ReplayFrom(Body):
    """The new place of a webhook: a cursor of the event feed, `now`, or an empty text (the oldest stored event)."""

    after: After


class WebhookQuery(Page, extra="forbid"):
    """A page of a list that has no filters."""


class WebhookRow(ResponseSchema):
    """A webhook. `why`: the reason why it is paused or fails. `cursor`: the place of its next event in the feed."""

    id: UUID
    url: str
    types: list[str]
    tags: list[str]
    description: str
    paused: bool
    why: str | None
    cursor: str
    created_at: Time

    @classmethod
    def of(cls, webhook: Webhook) -> "WebhookRow":
        """Return a webhook in the form of the API."""
        return cls(**_fields(webhook))


def _fields(webhook: Webhook) -> dict[str, Any]:
    same = ("id", "url", "types", "tags", "description", "paused", "created_at")
    fields = {name: getattr(webhook, name) for name in same}
    return {**fields, "why": status.why(webhook), "cursor": leases.cursor_of(webhook).text}


class WebhookMade(WebhookRow):
    """A new webhook with its secret. Only this answer contains the secret."""

    secret: str = ""


class SecretRotated(WebhookRow):
    """A webhook with its new secret. Only this answer contains the new secret.

    Until `previous_secret_until`, requests are also signed with the previous secret.
    """

    secret: str = ""
    previous_secret_until: Time


class WebhookPage(ResponseSchema):
    """One page of the list of webhooks."""

    items: list[WebhookRow]
    next_cursor: str | None


class WebhookAttemptRow(ResponseSchema):
    """An attempt to send an event. If there was no response, `http_status` is null, and `error` is the reason."""

    event_id: str
    type: str
    at: Time
    delivered: bool
    http_status: int | None
    error: str | None
    latency_ms: int

    @classmethod
    def of(cls, attempt: WebhookAttempt) -> "WebhookAttemptRow":
        """Return an attempt in the form of the API."""
        return cls(
            event_id=attempt.event_id,
            type=attempt.type,
            at=attempt.at,
            delivered=attempt.is_delivered,
            http_status=attempt.http_status,
            error=attempt.error or None,
            latency_ms=attempt.latency_ms,
        )


class WebhookAttemptPage(ResponseSchema):
    """One page of the list of attempts."""

    items: list[WebhookAttemptRow]
    next_cursor: str | None


class WebhookTested(ResponseSchema):
    """The result of a test. `attempt` is null if no dispatcher has sent the test within 12 s."""

    event_id: str
    attempt: WebhookAttemptRow | None


def _summarize_new(request: HttpRequest, _: Mapping[str, Any]) -> Summary:
    """Return the summary for the audit. It contains only the host of the URL: the rest may contain a secret."""
    url = (body_of(request) or {}).get("url")
    try:
        host = urlsplit(url).hostname if isinstance(url, str) else None
    except ValueError:
        host = None
    return Summary("create_webhook", target_text("host", [host]) if host else "")


@router.post("/webhooks", response=WebhookMade, url_name="webhooks")
@summarized(_summarize_new)
async def create_webhook(request: HttpRequest, body: NewWebhook) -> HttpResponse:
    """Create a webhook, which gets the events from now on.

    Only this answer contains the secret. A repeat of the request with the same `Idempotency-Key` gets the same answer.
    Each event is a POST of `{"type", "timestamp", "data"}`. `data` contains the data of the event, its `device_id` and
    its `request_id`. The request is signed according to the Standard Webhooks specification. Check the header
    `webhook-signature` with the secret. An answer with a status 2xx within 10 s acknowledges the event. Without an
    acknowledgement, the event is sent again with the same `webhook-id`, after at most an hour. After 72 hours without
    an acknowledgement, the webhook is paused. Events are sent in order, and each event at least once.
    """

    def work() -> WriteResult[Any]:
        made = queries.create(url=body.url, types=body.types, tags=body.tags, description=body.description)
        return WriteResult(WebhookMade(**_fields(made)), secrets={"secret": _first_secret(made)})

    return await caller_of(request).run(work, restore_secrets=_restore_first_secret)


def _first_secret(webhook: Webhook) -> str:
    return signatures.secret_text(webhook, 1) or ""


def _restore_first_secret(answer: dict[str, Any]) -> Mapping[str, Any]:
    try:
        return {"secret": _first_secret(queries.webhook(UUID(answer["id"])))}
    except queries.UnknownWebhook:
        return {}


@router.get("/webhooks", response=WebhookPage, url_name="webhooks")
async def list_webhooks(request: HttpRequest, query: Query[WebhookQuery]) -> HttpResponse:
    """List the webhooks without their secrets, newest first."""
    rows, next_cursor = await run_in_db_thread(queries.webhooks, query)
    return respond(WebhookPage(items=[WebhookRow.of(row) for row in rows], next_cursor=next_cursor))


@router.get("/webhooks/{uuid:webhook_id}", response=WebhookRow, url_name="webhook")
async def read_webhook(request: HttpRequest, webhook_id: UUID) -> HttpResponse:
    """Return one webhook without its secret."""
    return respond(WebhookRow.of(await run_in_db_thread(queries.webhook, webhook_id)))


@router.patch("/webhooks/{uuid:webhook_id}", response=WebhookRow, url_name="webhook")
@summarized(by_path("change_webhook", ID))
async def change_webhook(request: HttpRequest, webhook_id: UUID, body: WebhookChange) -> HttpResponse:
    """Change the URL, types or tags of a webhook, pause it, or resume it.

    New types or tags replace the old types or tags. A paused webhook keeps its place in the event feed. A resumed
    webhook continues with its next event. Its 72 hours until a pause begin again.
    """
    caller = caller_of(request)

    def work() -> WriteResult[Any]:
        changes = body.model_dump(exclude_unset=True)
        return WriteResult(WebhookRow.of(queries.change(webhook_id, changes, caller.principal)))

    return await caller.run(work)


@router.delete("/webhooks/{uuid:webhook_id}", response=WebhookRow, url_name="webhook")
@summarized(by_path("delete_webhook", ID))
async def delete_webhook(request: HttpRequest, webhook_id: UUID) -> HttpResponse:
    """Delete a webhook and its attempts. The answer contains the webhook. A running request is not interrupted."""
    return await caller_of(request).run(lambda: WriteResult(WebhookRow.of(queries.delete(webhook_id))))


@router.post("/webhooks/{uuid:webhook_id}/replay", response=WebhookRow, url_name="replay-webhook")
@summarized(by_path("replay_webhook", ID))
async def replay_webhook(request: HttpRequest, webhook_id: UUID, body: ReplayFrom) -> HttpResponse:
    """Move a webhook to another place in the event feed.

    `after` is a cursor of `GET /admin/events`, `now`, or an empty text for the oldest stored event. The webhook gets
    all events after this place. An earlier place repeats events that the webhook has already got. A later place skips
    events. A paused webhook stays paused.
    """

    def work() -> WriteResult[Any]:
        return WriteResult(WebhookRow.of(queries.replay(webhook_id, first_place(body.after))))

    return await caller_of(request).run(work)


@router.post("/webhooks/{uuid:webhook_id}/rotate-secret", response=SecretRotated, url_name="rotate-webhook-secret")
@summarized(by_path("rotate_webhook_secret", ID))
async def rotate_webhook_secret(request: HttpRequest, webhook_id: UUID, body: EmptyBody | None = None) -> HttpResponse:
    """Give a webhook a new secret. Only this answer, and the answer to a repeat, contain the new secret.

    For 24 hours, each request has two signatures: with the new and with the previous secret. If you rotate again within
    these hours, each request is signed with the two newest secrets.
    """

    def work() -> WriteResult[Any]:
        rotated = queries.rotate_secret(webhook_id)
        answer = SecretRotated(**_fields(rotated), previous_secret_until=_previous_until(rotated))
        return WriteResult(answer, secrets={"secret": _newest_secret(rotated)})

    return await caller_of(request).run(work, restore_secrets=_restore_newest_secret)


def _previous_until(webhook: Webhook) -> datetime:
    assert webhook.rotated_at is not None
    return webhook.rotated_at + signatures.PREVIOUS_SIGNS


def _newest_secret(webhook: Webhook) -> str:
    return signatures.secret_text(webhook, webhook.secret_number) or ""


def _restore_newest_secret(answer: dict[str, Any]) -> Mapping[str, Any]:
    try:
        webhook = queries.webhook(UUID(answer["id"]))
    except queries.UnknownWebhook:
        return {}
    # A later rotation has changed this time.
    is_newest = answer["previous_secret_until"] == rfc3339(_previous_until(webhook))
    return {"secret": _newest_secret(webhook)} if is_newest else {}


@router.post("/webhooks/{uuid:webhook_id}/test", response=WebhookTested, url_name="test-webhook")
@summarized(by_path("test_webhook", ID))
async def send_webhook_test(request: HttpRequest, webhook_id: UUID, body: EmptyBody | None = None) -> HttpResponse:
    """Send one event of the type `webhook.test` to a webhook.

    A dispatcher sends the test even if the webhook is paused or waits for a retry. The answer waits up to 12 s for the
    attempt. If `attempt` is null, no dispatcher has sent the test yet. In this case, read `GET …/attempts` later. The
    test is sent only once, and does not change the state of the webhook.
    """

    def work() -> WriteResult[Any]:
        return WriteResult(WebhookTested(event_id=queries.ask_for_test(webhook_id), attempt=None))

    response = await caller_of(request).run(work)
    asked = orjson.loads(response.content)
    attempt = await _attempted(webhook_id, asked["event_id"])
    response.content = WebhookTested(event_id=asked["event_id"], attempt=attempt).model_dump_json().encode()
    return response


async def _attempted(webhook_id: UUID, event_id: str) -> WebhookAttemptRow | None:
    until = time.monotonic() + TEST_SECONDS
    while True:
        found, is_served = await run_in_db_thread(_look, webhook_id, event_id)
        if found is not None:
            return WebhookAttemptRow.of(found)
        if not is_served or time.monotonic() >= until or shutdown.is_requested():
            return None
        await asyncio.sleep(POLL_SECONDS)
        database.continue_request()


def _look(webhook_id: UUID, event_id: str) -> tuple[WebhookAttempt | None, bool]:
    return queries.attempt_at(webhook_id, event_id), dispatcher_status.dispatcher_state() == "ok"


@router.get("/webhooks/{uuid:webhook_id}/attempts", response=WebhookAttemptPage, url_name="webhook-attempts")
async def list_webhook_attempts(request: HttpRequest, webhook_id: UUID, query: Query[WebhookQuery]) -> HttpResponse:
    """List the newest 1,000 attempts of a webhook, newest first. They are stored for `EVENT_RETENTION_DAYS` at most."""
    rows, next_cursor = await run_in_db_thread(queries.attempts, webhook_id, query)
    return respond(WebhookAttemptPage(items=[WebhookAttemptRow.of(row) for row in rows], next_cursor=next_cursor))
