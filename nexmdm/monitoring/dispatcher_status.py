"""Which dispatchers run, and whether they can send pushes. Each dispatcher updates its own row."""

import os
import socket
from datetime import timedelta
from typing import Final

from django.conf import settings
from django.db.models.functions import Now

from commands.push import circuit_breaker
from commands.push.circuit_breaker import Circuit
from nexmdm.common.types import rfc3339
from nexmdm.models import DispatcherSeen

NAME: Final = f"{socket.gethostname()[:100]}:{os.getpid()}"
SEEN_EVERY_SECONDS: Final = 2
ALIVE: Final = timedelta(seconds=8)
FORGOTTEN: Final = timedelta(days=1)


def note_seen(state: Circuit) -> int:
    """Record that this dispatcher runs, with the state of its circuit breaker.

    Return the number of running dispatchers, including this dispatcher.
    """
    fields = {"last_seen_at": Now(), "circuit": state.state, "circuit_reason": state.reason}
    DispatcherSeen.objects.update_or_create(name=NAME, defaults=fields)
    DispatcherSeen.objects.filter(last_seen_at__lt=Now() - FORGOTTEN).delete()
    return max(1, DispatcherSeen.objects.filter(last_seen_at__gt=Now() - ALIVE).count())


def leave() -> None:
    """Record that this dispatcher has stopped."""
    DispatcherSeen.objects.filter(name=NAME).delete()


def dispatcher_state() -> str:
    """Return `ok` if a dispatcher runs.

    If no dispatcher runs, return `never seen`, or a text with the time when a dispatcher was last seen.
    """
    last = DispatcherSeen.objects.order_by("-last_seen_at").first()
    if last is None:
        return "never seen"
    if DispatcherSeen.objects.filter(last_seen_at__gt=Now() - ALIVE).exists():
        return "ok"
    return f"last seen {rfc3339(last.last_seen_at)}"


def push_state() -> str:
    """Return `unconfigured`, `circuit_open` or `ok`.

    `circuit_open` means that the circuit of every running dispatcher is open.
    """
    if settings.FIREBASE_SERVICE_ACCOUNT is None:
        return "unconfigured"
    states = set(DispatcherSeen.objects.filter(last_seen_at__gt=Now() - ALIVE).values_list("circuit", flat=True))
    return "circuit_open" if states == {circuit_breaker.OPEN} else "ok"
