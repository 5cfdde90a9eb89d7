"""The presence values of a device, as conditions and expressions for queries."""

from django.db.models import Case, CharField, Q, Value, When

from devices.presence.service_time import OnlineAfter, OnlineUntil

SEEN_AT = "presence__last_seen_at"


def presences() -> dict[str, Q]:
    """Return the condition for each presence value at this moment."""
    active, online_after = Q(revoked_at=None), OnlineAfter()
    return {
        "online": active & Q(**{f"{SEEN_AT}__gt": online_after}),
        "offline": active & Q(**{f"{SEEN_AT}__lte": online_after}),
        "never": active & Q(**{SEEN_AT: None}),
        "revoked": ~active & Q(retired_at=None),
        "retired": Q(retired_at__isnull=False),
    }


def presence_name() -> Case:
    """Return an expression for annotate(): the presence of a device at this moment."""
    named = (When(condition, then=Value(name)) for name, condition in presences().items())
    return Case(*named, output_field=CharField())


def offline_since() -> Case:
    """Return an expression for annotate(): when a device became offline, or NULL if the device is not offline."""
    return Case(When(presences()["offline"], then=OnlineUntil(SEEN_AT)))
