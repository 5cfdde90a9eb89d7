"""The handler of static files, for the admin site and /docs. Files are served from memory.

Django's own handler reads a file in a thread for each request. It keeps the whole file in memory until a slow client
has read it.
"""

import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final

from django.contrib.staticfiles import finders

from nexmdm.common import problems, request_facts
from nexmdm.common.asgi_types import Receive, Scope, Send
from nexmdm.http.asgi_answers import Header, answer, refuse

PREFIX: Final = "/static/"
_SOURCE_MAPS: Final = "*.map"
"""The pattern of source maps, which are not served. Source maps are three quarters of all files, and only the
development tools of a browser need them.
"""

_METHODS: Final = ("GET", "HEAD")
_WRONG_METHOD: Final = problems.general(405, "A static file allows only GET and HEAD.", Allow=", ".join(_METHODS))


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file in the form in which it is sent."""

    body: bytes
    etag: bytes
    headers: tuple[Header, ...]


class StaticFiles:
    """The ASGI application of static files. It serves only the files that Django's finders list."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Serve one request."""
        request_facts.of(scope).route = PREFIX
        path = _paths().get(scope["path"].removeprefix(PREFIX))
        if path is None:
            await refuse(scope, send, problems.NOT_FOUND)
        elif scope["method"] not in _METHODS:
            await refuse(scope, send, _WRONG_METHOD)
        else:
            await _serve(scope, send, _file(path))


async def _serve(scope: Scope, send: Send, file: StaticFile) -> None:
    # If a proxy compresses the answer, it changes our tag into a weak one.
    known = request_facts.of(scope).headers.last(b"if-none-match").split(b",")
    if file.etag in [tag.strip().removeprefix(b"W/") for tag in known]:
        await answer(scope, send, 304, file.headers)
    else:
        await answer(scope, send, 200, file.headers, file.body)


@cache
def _paths() -> Mapping[str, Path]:
    """Return the path of each file, by its name below PREFIX. If two files have the same name, the first counts."""
    found: dict[str, Path] = {}
    for finder in finders.get_finders():
        for name, storage in finder.list([_SOURCE_MAPS]):
            found.setdefault(name, Path(storage.path(name)))
    return found


@cache
def _file(path: Path) -> StaticFile:
    body = path.read_bytes()
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    etag = f'"{sha256(body).hexdigest()[:32]}"'.encode()
    headers = (
        (b"content-type", kind.encode()),
        (b"etag", etag),
        (b"cache-control", b"no-cache"),
        (b"x-content-type-options", b"nosniff"),
    )
    return StaticFile(body, etag, headers)
