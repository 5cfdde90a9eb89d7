"""A list of the admin site as CSV, of any length, read in descending order of the key, a few hundred rows at a time.

Each chunk is sent when it is read. No transaction and no connection stays open while a slow client reads, and only one
chunk is in memory.
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
"""The gate for exports: all exports together use one connection at a time. To read a chunk takes 30 ms."""

FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""The characters that begin a formula in a spreadsheet (OWASP, "CSV Injection")."""

Read = Callable[[Any, int], Sequence[tuple[Any, ...]]]


def response(name: str, headings: Iterable[str], read: Read, *, with_body: bool) -> HttpResponseBase:
    """Return the answer that streams a list.

    `read` gets a key (None at first) and a number. It returns this number of rows below the key; in each row, the key
    comes before the cells.
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
    """Return a value in the form of the API. A text that a spreadsheet would run gets an apostrophe in front."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, bool | list | dict):
        return json.dumps(value, ensure_ascii=False)
    text = str(value)
    return f"'{text}" if text.startswith(FORMULA) else text
