"""The CSV export of the admin site's lists. It reads a few hundred rows at a time, in descending order of the key.

Only these rows are in memory. While a slow client reads them, no transaction and no connection is open.
"""

import csv
import io
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Final

from django.http import HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase

from nexmdm.common import database
from nexmdm.common.overload.gates import Gate
from nexmdm.common.types import rfc3339

CHUNK: Final = 500

READING: Final = Gate("exports", at_once=1, waiting=100, waiting_per_key=1, seconds=60)
"""The gate for exports. All exports together use one connection at a time. A read of CHUNK rows takes 30 ms."""

FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""The characters with which a formula in a spreadsheet begins (OWASP, "CSV Injection")."""

Read = Callable[[Any, int], Sequence[tuple[Any, ...]]]


def response(name: str, headings: Iterable[str], read: Read, *, with_body: bool) -> HttpResponseBase:
    """Return the answer that streams a list as CSV.

    `read` is called with the key of the last row (None at first) and a number. `read` must return this number of
    further rows in descending order of the key. At the end of the list, it returns fewer rows. A row is its key,
    followed by its cells.
    """
    headers = {"Content-Disposition": f'attachment; filename="{name}.csv"'}
    kind = "text/csv; charset=utf-8"
    if not with_body:
        return HttpResponse(content_type=kind, headers=headers)
    return StreamingHttpResponse(_chunks(headings, read), content_type=kind, headers=headers)


async def _chunks(headings: Iterable[str], read: Read) -> AsyncIterator[str]:
    yield _text([headings])
    below = None
    while rows := await _read(read, below):
        yield _text(cells for _, *cells in rows)
        below = rows[-1][0]


async def _read(read: Read, below: Any) -> Sequence[tuple[Any, ...]]:
    async with READING.turn(read):
        return await database.run_unsigned(read, below, CHUNK)


def _text(rows: Iterable[Iterable[Any]]) -> str:
    lines = io.StringIO(newline="")
    csv.writer(lines).writerows([_cell(value) for value in row] for row in rows)
    return lines.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, bool | list | dict):
        return json.dumps(value, ensure_ascii=False)
    # A spreadsheet does not run a formula with an apostrophe in front.
    text = str(value)
    return f"'{text}" if text.startswith(FORMULA) else text
