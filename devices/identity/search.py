"""The search for devices: part of an alias or a hardware id in upper or lower case, or a device id or its start.

It scans the comparison keys, which takes a few tens of milliseconds for 100,000 devices. No index helps: a trigram
index needs an extension that the embedded PostgreSQL does not have.
"""

import re
from typing import Final
from uuid import UUID

from django.db.models import Q

from nexmdm.common.identity import folded

_DIGITS: Final = re.compile(r"[0-9a-f]{1,32}")


def matching(text: str) -> Q:
    r"""Return the condition on devices for a search text. `%`, `_` and `\` have no special meaning."""
    ids = ids_that_begin_with(text.lower())
    return named(text) if ids is None else named(text) | Q(id__range=ids)


def named(text: str, device: str = "") -> Q:
    """Return the condition that a device has this text in its alias or its hardware id, in upper or lower case.

    `device` is the path to the device, as `delivery__device__`. The condition is a join and not a subquery. So
    PostgreSQL's planner, which tries the text on a sample, begins with the devices if few of them match, and with the
    newest rows if many match.
    """
    part = folded(text)
    found = Q(**{f"{device}alias_key__contains": part}) | Q(**{f"{device}hardware_key__contains": part})
    # Rows that the previous version has written, until their keys are filled in.
    found |= Q(**{f"{device}alias_key": None}) & Q(**{f"{device}alias__icontains": text})
    return found | Q(**{f"{device}hardware_key": None}) & Q(**{f"{device}hardware_id__icontains": text})


def ids_that_begin_with(text: str) -> tuple[UUID, UUID] | None:
    """Return the lowest and the highest id that begins with a text, with or without hyphens; None if none can."""
    digits = text.replace("-", "")
    if not _DIGITS.fullmatch(digits):
        return None
    lowest = UUID(hex=digits.ljust(32, "0"))
    is_start = "-" not in text or str(lowest).startswith(text)
    return (lowest, UUID(hex=digits.ljust(32, "f"))) if is_start else None
