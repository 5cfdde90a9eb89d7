"""The names that an admin can use for a webhook: its id, the start of its id, its URL or its description."""

import re
from collections.abc import Callable
from typing import Final

from nexmdm.client.arguments import IDENTIFIER
from nexmdm.client.http_client import PAGE, FleetClient
from nexmdm.client.names import NotFound
from nexmdm.client.rows import Json
from nexmdm.client.suggestions import did_you_mean, fold

PATH: Final = "/admin/webhooks"
_START: Final = re.compile(r"[0-9a-f][0-9a-f-]{3,35}", re.IGNORECASE)


def newest_webhooks(client: FleetClient) -> list[Json]:
    """Return the newest webhooks, at most one page. Raises Refused or Unreachable."""
    return client.items(PATH, PAGE)[0]


def webhook_id(client: FleetClient, name: str) -> str:
    """Return the id of the webhook with this name.

    Raises NotFound if no webhook or several webhooks have this name. Raises Refused or Unreachable if the request
    fails.
    """
    if IDENTIFIER.fullmatch(name):
        return name.lower()
    known = newest_webhooks(client)
    for fits in _ways(name):
        if found := [row for row in known if fits(row)]:
            return _only(name, found)
    meant = did_you_mean(name, [row["description"] or row["url"] for row in known])
    raise NotFound(f"No webhook has the id, URL or description {name!r}.{meant}")


def _ways(name: str) -> list[Callable[[Json], bool]]:
    ways: list[Callable[[Json], bool]] = [
        lambda row: row["url"] == name,
        lambda row: fold(row["description"] or "") == fold(name),
    ]
    if _START.fullmatch(name):
        ways.append(lambda row: row["id"].startswith(name.lower()))
    return ways


def _only(name: str, found: list[Json]) -> str:
    if len(found) == 1:
        return str(found[0]["id"])
    listed = [f"  {row['id']}  {row['url']}  {row['description'] or '-'}" for row in found]
    raise NotFound("\n".join([f"{len(found)} webhooks have the name {name!r}:", *listed]))
