"""The search for devices by a part of an alias or hardware id, or by the start of a device id.

The search reads the columns `alias_key` and `hardware_key` of all devices. For 100,000 devices, this takes less than
100 ms. No index can help: a trigram index needs an extension that the embedded PostgreSQL does not have.
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
    """Return the condition that a device's alias or hardware id contains a text, in upper or lower case.

    `device` is the path from the queried model to the device, such as `delivery__device__`.
    """
    # Do not use a subquery. With a join, PostgreSQL's planner tries the text on a sample. It begins with the devices if
    # few of them match, and with the newest rows if many match.
    part = folded(text)
    found = Q(**{f"{device}alias_key__contains": part}) | Q(**{f"{device}hardware_key__contains": part})
    # Rows whose keys are still missing, because the previous version has written them.
    found |= Q(**{f"{device}alias_key": None}) & Q(**{f"{device}alias__icontains": text})
    return found | Q(**{f"{device}hardware_key": None}) & Q(**{f"{device}hardware_id__icontains": text})


def ids_that_begin_with(text: str) -> tuple[UUID, UUID] | None:
    """Return the lowest and the highest id that begins with `text`, or None if no id can begin with it.

    `text` must be in lower case. It may have the hyphens of an id, or no hyphens.
    """
    digits = text.replace("-", "")
    if not _DIGITS.fullmatch(digits):
        return None
    lowest = UUID(hex=digits.ljust(32, "0"))
    is_start = "-" not in text or str(lowest).startswith(text)
    return (lowest, UUID(hex=digits.ljust(32, "f"))) if is_start else None
