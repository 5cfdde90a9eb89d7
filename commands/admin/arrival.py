"""The arrival of a push at the phone, as a text for people."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from nexmdm.common.read_only_admin.columns import NOTHING, WARN, badge, moment


def describe(push_arrival: Mapping[str, Any] | None) -> SafeString:
    """Return how a push arrived: its priority, whether FCM downgraded the push, and when it was sent and received.

    If the phone reported no arrival, return `-`.
    """
    if not push_arrival:
        return SafeString(NOTHING)
    parts = [_priority(push_arrival.get("priority"), push_arrival.get("original_priority"))]
    for name, word in (("sent_at", "sent"), ("received_at", "received")):
        if push_arrival.get(name):
            parts.append(format_html("{} {}", word, moment(datetime.fromisoformat(push_arrival[name]))))
    return format_html_join("; ", "{}", ((part,) for part in parts if part))


def _priority(priority: str | None, original: str | None) -> SafeString:
    if (priority, original) == ("normal", "high"):
        return format_html("{} arrived with priority normal, sent as high", badge("downgraded", WARN))
    if priority is None:
        return format_html("sent with priority {}", original) if original else SafeString()
    if original is None or original == priority:
        return format_html("arrived with priority {}", priority)
    return format_html("arrived with priority {}, sent as {}", priority, original)
