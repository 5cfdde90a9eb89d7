"""Fixtures of the tests of webhooks: a receiver on loopback, and a webhook that leads to it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

import pytest
from pytest_django import Settings

from tests.support.actors import Admin
from tests.webhooks.receiver import Receiver, receiving


@dataclass(slots=True)
class Hook:
    """A webhook as its admin uses it."""

    admin: Admin
    id: str
    secret: str

    @property
    def path(self) -> str:
        """The path of the webhook."""
        return f"/admin/webhooks/{self.id}"

    @property
    def row(self) -> dict[str, Any]:
        """The webhook, as the API shows it now."""
        row: dict[str, Any] = self.admin.get(self.path).json
        return row

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """Its attempts, newest first."""
        items: list[dict[str, Any]] = self.admin.get(f"{self.path}/attempts").json["items"]
        return items

    def change(self, **fields: Any) -> dict[str, Any]:
        """Change the webhook and return it."""
        answer = self.admin.call("PATCH", self.path, fields)
        assert answer.status == 200, answer
        changed: dict[str, Any] = answer.json
        return changed

    def replay(self, after: str) -> None:
        """Move the cursor."""
        assert self.admin.post(f"{self.path}/replay", {"after": after}).status == 200


@pytest.fixture
def receiver(settings: Settings) -> Iterator[Receiver]:
    """A receiver to which webhooks may lead."""
    settings.WEBHOOK_ALLOW_PRIVATE = [ip_network("127.0.0.0/8"), ip_network("::1/128")]
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def make_hook(admin: Admin, receiver: Receiver) -> Callable[..., Hook]:
    """Make a webhook that leads to the receiver, or to another URL."""

    def make(**fields: Any) -> Hook:
        answer = admin.post("/admin/webhooks", {"url": receiver.url, **fields})
        assert answer.status == 200, answer
        return Hook(admin, answer.json["id"], answer.json["secret"])

    return make


@pytest.fixture
def hook(make_hook: Callable[..., Hook]) -> Hook:
    """A webhook that gets all events."""
    return make_hook()
