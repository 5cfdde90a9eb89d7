"""The presences of a device by name, as conditions for queries."""

from django.db.models import Case, CharField, Q, Value, When

from devices.presence.service_time import OnlineAfter, OnlineUntil

SEEN_AT = "presence__last_seen_at"


def presences() -> dict[str, Q]:
    """Return the presences by name, each with its condition at this moment."""
    active, online_after = Q(revoked_at=None), OnlineAfter()
    return {
        "online": active & Q(**{f"{SEEN_AT}__gt": online_after}),
        "offline": active & Q(**{f"{SEEN_AT}__lte": online_after}),
        "never": active & Q(**{SEEN_AT: None}),
        "revoked": ~active & Q(retired_at=None),
        "retired": Q(retired_at__isnull=False),
    }


def presence_name() -> Case:
    """Return the name of a device's presence at this moment, for annotate()."""
    named = (When(condition, then=Value(name)) for name, condition in presences().items())
    return Case(*named, output_field=CharField())


def offline_since() -> Case:
    """Return, for annotate(), since when a device is offline; NULL if the device is not offline."""
    return Case(When(presences()["offline"], then=OnlineUntil(SEEN_AT)))
