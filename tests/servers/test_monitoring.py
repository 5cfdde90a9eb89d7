"""The dashboard and the alerts use only names, labels and values of labels that /metrics really has."""

import asyncio
import json
import re
import tempfile
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import aiohttp
import httpx
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from commands.actions import CATALOGUE
from commands.models import FCM_ERRORS, AttemptOutcome, CommandOutcome, ReportStatus
from loadtest.testbed import testbed
from loadtest.testbed.serving import wait_for
from loadtest.testbed.testbed import ServerUnderTest
from nexmdm.client.phone import Phone
from nexmdm.webhooks import lane

DOCS: Final = Path(__file__).resolve().parent.parent.parent / "docs" / "operations"
DASHBOARD: Final = json.loads((DOCS / "grafana-dashboard.json").read_text())
RULES: Final = yaml.safe_load((DOCS / "prometheus-rules.yml").read_text())
ALERTS: Final = [rule for group in RULES["groups"] for rule in group["rules"]]
OF_PROMETHEUS: Final = {"up": {"job", "instance"}}
VALUES: Final[dict[str, set[str]]] = {
    "status": {str(status.value) for status in HTTPStatus},
    "outcome": {*AttemptOutcome.values, *CommandOutcome.values, *lane.OUTCOMES},
    "fcm_error": {*FCM_ERRORS, "other", ""},
    "job": {"nexmdm"},
}
"""Labels with known values, some of which cannot occur in a test."""

Series = dict[str, list[dict[str, str]]]


async def _loop(place: ServerUnderTest) -> None:
    """Register two phones and command them. One phone reports, and sends an odd reading; a push to the other is due."""
    token = place.admin.post("/admin/enrollment-tokens", {"max_uses": 2})["enrollment_token"]
    async with aiohttp.ClientSession() as session:
        phone = Phone(session, place.admin.url)
        await Phone(session, place.admin.url).register(token, "phone-2", push_token="ok-2")
        await phone.register(token, "phone-1", push_token="ok-1")
        place.admin.post("/admin/command", {"action": "ping", "target": {"all": True}})
        await phone.check_in(status={"battery_pct": 255})


@pytest.fixture(scope="module")
def exposed() -> Iterator[Series]:
    """The series in /metrics of a whole server after a loop: the labels of each series, by the name of its samples."""
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as name:
        folder = Path(name)
        with testbed.started(folder, folder / "data", interval_seconds=120, commands_per_minute=60) as place:
            asyncio.run(_loop(place))
            httpx.get(f"{place.admin.url}/admin/summary")
            wait_for(lambda: "nexmdm_pushes_total{" in _text(place) and 'part="dispatch"' in _text(place))
            found: Series = {}
            for family in text_string_to_metric_families(_text(place)):
                for sample in family.samples:
                    found.setdefault(sample.name, []).append(sample.labels)
            yield found


def _text(place: ServerUnderTest) -> str:
    return httpx.get(f"{place.admin.url}/metrics").raise_for_status().text


def panels() -> list[Any]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


EXPRESSIONS: Final = {
    **{f"{panel['title']} {one['refId']}": one["expr"] for panel in panels() for one in panel["targets"]},
    **{rule["alert"]: rule["expr"] for rule in ALERTS},
}


def parsed(expression: str) -> Any:
    """Parse PromQL, with Grafana's variables filled in."""
    return promql_parser.parse(expression.replace("$__rate_interval", "1m").replace("$route", ".*"))


def nodes(node: Any) -> Iterator[Any]:
    """Walk over an expression from the outside in."""
    yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        if (inner := getattr(node, name, None)) is not None:
            yield from nodes(inner)
    for inner in getattr(node, "args", None) or ():
        yield from nodes(inner)


def selectors(expression: str) -> list[Any]:
    found = [node for node in nodes(parsed(expression)) if isinstance(node, promql_parser.VectorSelector)]
    assert found, expression
    return found


def grouped_by(expression: str) -> set[str]:
    modifiers = (getattr(node, "modifier", None) for node in nodes(parsed(expression)))
    return {label for modifier in modifiers if modifier is not None for label in getattr(modifier, "labels", ())}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_uses_existing_metrics_and_labels(exposed: Series, name: str) -> None:
    expression = EXPRESSIONS[name]
    labels: set[str] = set()
    for selector in selectors(expression):
        if selector.name in OF_PROMETHEUS:
            labels |= OF_PROMETHEUS[selector.name]
            continue
        assert selector.name in exposed, f"there is no {selector.name}"
        series = exposed[selector.name]
        labels |= {label for one in series for label in one}
        for matcher in selector.matchers.matchers:
            known = VALUES.get(matcher.name) or {one.get(matcher.name, "") for one in series}
            assert any(re.fullmatch(matcher.value, value) for value in known), f"no {matcher.name} is {matcher.value}"
            assert matcher.name in labels
    assert grouped_by(expression) <= labels


def test_a_legend_shows_labels_that_its_expression_keeps() -> None:
    for panel in panels():
        for one in panel["targets"]:
            shown = set(re.findall(r"{{(\w+)}}", one["legendFormat"]))
            assert shown <= grouped_by(one["expr"]), panel["title"]


def test_every_metric_of_ours_is_on_the_dashboard(exposed: Series) -> None:
    shown = {selector.name for expression in EXPRESSIONS.values() for selector in selectors(expression)}
    ours = {name for name in exposed if name.startswith("nexmdm_")}
    families = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in ours}
    assert families == {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in shown if name.startswith("nexmdm_")}


def test_every_metric_of_ours_is_documented(exposed: Series) -> None:
    told = (DOCS / "monitoring.md").read_text()
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed if name.startswith("nexmdm_")}
    assert [name for name in families if name not in told and name != "nexmdm_database_connections_limit"] == []


def test_the_dashboard_fits_together() -> None:
    names = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(names) == len(set(names))
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells)), "panels overlap"
    assert all(x < 24 for x, _ in cells)
    variables = {one["name"] for one in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) - {"__rate_interval"}
    assert used == variables


def test_an_alert_has_a_severity_and_a_remedy() -> None:
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}


def test_an_alert_names_existing_panels() -> None:
    titles = {panel["title"] for panel in panels()}
    for rule in ALERTS:
        assert set(re.findall(r'"([^"]+)"', rule["annotations"]["description"])) <= titles


def test_no_label_of_a_closed_set_has_another_value(exposed: Series) -> None:
    closed = {**VALUES, "action": set(CATALOGUE)}
    for name, values in closed.items():
        seen = {one[name] for series in exposed.values() for one in series if name in one}
        assert seen <= values | set(ReportStatus.values), name
