"""The HTTP server of the fake FCM. It listens on the loopback interface.

The beginning of a push target chooses the answer; the table is in replies.py. There is one exception. A FID that
contains a colon is a push token in the wrong field. A push to this FID gets 404 UNREGISTERED, as from FCM.
"""

import argparse
import asyncio
import re
import secrets
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import parse_qsl

import jwt
import orjson
import uvloop
from cryptography.hazmat.primitives import serialization

from loadtest.fake_fcm.access_tokens import GRANT_TYPE, AccessTokens, private_key
from loadtest.fake_fcm.http_server import HttpServer, Request
from loadtest.fake_fcm.journal import Journal, Send
from loadtest.fake_fcm.replies import (
    NOT_FCMS_OWN,
    PREFIX,
    REFUSALS,
    WORDS,
    Reply,
    invalid,
    malformed,
    script_of,
    target_of,
    violation_in,
)

_SEND: Final = re.compile(r"/v1/projects/[^/]+/messages:send")


_ORDERS: Final[Mapping[str, type]] = {
    "override": str,
    "oauth_down": bool,
    "delay_ms": int,
    "expires_in_seconds": int,
    "revoke_access_tokens": bool,
    "clear_journal": bool,
}


class FcmStandin:
    """A fake Firebase project: an HTTP server in a thread, from `start` to `close`.

    Any thread may set these attributes:

    - `override`: the answer to every push; None: the push target chooses the answer.
    - `delay_ms`: the additional delay of every answer to a push, in milliseconds.
    - `oauth_down`: whether the OAuth endpoint fails.
    - `oauth_says`: the body that the OAuth endpoint sends with 200 in place of a token; empty: it sends a token.
    - `expires_in_seconds`: the lifetime of the access tokens that are issued from now on.
    """

    def __init__(
        self, *, port: int = 0, project_id: str = "nexmdm-standin", delay_ms: int = 0, journal_file: Path | None = None
    ) -> None:
        self._socket = socket.create_server(("127.0.0.1", port), backlog=1024)
        self.base_url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.project_id = project_id
        self._send_path = f"/v1/projects/{project_id}/messages:send"
        self.client_email = f"standin@{project_id}.iam.gserviceaccount.com"
        self.journal = Journal(journal_file)
        self.access_tokens = AccessTokens(self.client_email, self.token_uri)
        self.delay_ms = delay_ms
        self.oauth_down = False
        self.oauth_says = ""
        self.expires_in_seconds = 3600
        self._override: str | None = None
        self._flaky: Counter[str] = Counter()
        self._accepted = 0
        self._run_id = secrets.token_hex(8)
        self._loop = uvloop.new_event_loop()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="fcm-standin", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def token_uri(self) -> str:
        """The URL of the OAuth endpoint."""
        return f"{self.base_url}/token"

    @property
    def override(self) -> str | None:
        """The answer to every push, as a word and an optional number: `unavailable7`, `hang`.

        An override replaces all checks of the push, also the check of its access token. None: there is no override.
        Raises ValueError if the word is not in `WORDS`.
        """
        return self._override

    @override.setter
    def override(self, text: str | None) -> None:
        match = PREFIX.fullmatch(f"{text}-")
        if text is not None and (match is None or match[1] not in WORDS):
            raise ValueError(f"override cannot be {text!r}: it is one of {', '.join(sorted(WORDS))}")
        self._override = text

    def start(self) -> None:
        """Begin to answer requests."""
        self._thread.start()

    def close(self) -> None:
        """Stop the server, and cut all open connections. The journal can still be read. A second call does nothing."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()
        self.journal.close()

    def service_account(self) -> dict[str, str]:
        """Return the service account, as the content of a Google key file.

        Its `token_uri` is the OAuth endpoint of the fake.
        """
        pem = private_key().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return {
            "type": "service_account",
            "project_id": self.project_id,
            "private_key_id": self._run_id,
            "private_key": pem.decode(),
            "client_email": self.client_email,
            "client_id": "1",
            "token_uri": self.token_uri,
        }

    def revoke_access_tokens(self) -> None:
        """Revoke all access tokens. A push with a revoked token gets 401."""
        self.access_tokens.revoke_all()

    def obey(self, orders: Mapping[str, Any]) -> None:
        """Carry out the orders of `POST /control`.

        Raises ValueError for an unknown order or an invalid value. In this case, no order is carried out.
        """
        for name, value in orders.items():
            withdrawn = name == "override" and value is None
            if not withdrawn and type(value) is not _ORDERS.get(name):
                raise ValueError(f"{name} cannot be {value!r}")
        self.override = orders.get("override", self.override)
        for name in {"oauth_down", "delay_ms", "expires_in_seconds"} & orders.keys():
            setattr(self, name, orders[name])
        if orders.get("revoke_access_tokens"):
            self.revoke_access_tokens()
        if orders.get("clear_journal"):
            self.journal.clear()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        server = HttpServer(self._answer)
        await server.start(self._socket)
        await self._closing.wait()
        server.close()
        await asyncio.sleep(0)

    def _answer(self, request: Request) -> None:
        if request.method == "POST" and _SEND.fullmatch(request.path):
            self._send(request)
            return
        others = {
            ("POST", "/token"): self._token,
            ("POST", "/control"): self._control,
            ("GET", "/journal"): self._show_journal,
        }
        other = others.get((request.method, request.path))
        if other is None:
            request.answer(HTTPStatus.NOT_FOUND)
        else:
            other(request)

    def _send(self, request: Request) -> None:
        at, monotonic = time.time(), time.monotonic()
        message = _message_in(request.body)
        reply = self._decide(request, message)
        self._note(at, monotonic, message, reply)
        delay_seconds = reply.delay_seconds + self.delay_ms / 1000
        if delay_seconds == inf:
            return  # close() cuts the connection.
        if delay_seconds > 0:
            self._loop.call_later(delay_seconds, _reply, request, reply)
        else:
            _reply(request, reply)

    def _note(self, at: float, monotonic: float, message: dict[str, Any], reply: Reply) -> None:
        data = message.get("data")
        request_id = str(data.get("request_id", "")) if isinstance(data, dict) else ""
        push_token = target_of(message)
        said = (reply.answer, reply.status, reply.message_id)
        self.journal.add(Send(at, monotonic, push_token, request_id, message, *said))

    def _decide(self, request: Request, message: dict[str, Any]) -> Reply:
        push_token = target_of(message)
        if self._override:
            return self.scripted(f"{self._override}-", push_token)
        if not self.access_tokens.accepts(request.authorization):
            return REFUSALS["unauthenticated"]
        if request.path != self._send_path:
            return REFUSALS["missing"]
        if violation := violation_in(message):
            return invalid(f"Invalid value at '{violation}'")
        if ":" in str(message.get("fid")):
            return REFUSALS["unregistered"]
        reply = self.scripted(push_token, push_token)
        return malformed("message.fid") if reply.answer == "malformed" and "fid" in message else reply

    def scripted(self, script: str, push_token: str = "") -> Reply:
        """Return the answer for a push whose target begins with `script`, such as `quota7` (replies.py).

        The answer of `flaky` depends on the number of earlier pushes to `push_token`.
        """
        word, number = script_of(script)
        if word == "flaky":
            word, number = self._flaked(push_token, number or 1), None
        if word in ("quota", "unavailable") and number is not None:
            return replace(REFUSALS[word], retry_after=str(number))
        if word in NOT_FCMS_OWN:
            return Reply(word, status=number or HTTPStatus.NOT_FOUND, body=NOT_FCMS_OWN[word])
        if word in ("hang", "reset"):
            return Reply(word, status=None, delay_seconds=inf if word == "hang" else 0)
        if word == "garbage":
            return Reply(word, body=b"<!DOCTYPE html><title>200</title>")
        return REFUSALS.get(word) or self._accept(word, (number or 0) / 1000 if word == "slow" else 0)

    def _flaked(self, push_token: str, times: int) -> str:
        self._flaky[push_token] += 1
        return "unavailable" if self._flaky[push_token] <= times else "ok"

    def _accept(self, word: str, delay_seconds: float) -> Reply:
        self._accepted += 1
        message_id = f"projects/{self.project_id}/messages/0:{self._accepted}%{self._run_id}"
        body = b'{"name":"%s"}' % message_id.encode()
        return Reply(word, body=body, message_id=message_id, delay_seconds=delay_seconds)

    def _token(self, request: Request) -> None:
        if self.oauth_down:
            # google-auth tries a 500, 503 or 504 again for seconds before it fails; a 502 fails immediately.
            request.answer(HTTPStatus.BAD_GATEWAY, orjson.dumps({"error": "bad_gateway"}))
            return
        if self.oauth_says:
            request.answer(body=self.oauth_says.encode(), headers=(("Content-Type", "text/plain; charset=utf-8"),))
            return
        form = dict(parse_qsl(request.body.decode()))
        if form.get("grant_type") != GRANT_TYPE:
            request.answer(HTTPStatus.BAD_REQUEST, orjson.dumps({"error": "unsupported_grant_type"}))
            return
        try:
            token = self.access_tokens.exchange(form.get("assertion", ""), self.expires_in_seconds)
        except jwt.InvalidTokenError as error:
            refusal = {"error": "invalid_grant", "error_description": str(error)}
            request.answer(HTTPStatus.BAD_REQUEST, orjson.dumps(refusal))
            return
        given = {"access_token": token, "expires_in": self.expires_in_seconds, "token_type": "Bearer"}
        request.answer(body=orjson.dumps(given))

    def _control(self, request: Request) -> None:
        try:
            self.obey(orjson.loads(request.body))
        except (ValueError, AttributeError) as error:
            request.answer(HTTPStatus.BAD_REQUEST, orjson.dumps({"error": str(error)}))
            return
        state = {name: getattr(self, name) for name in ("override", "oauth_down", "delay_ms", "expires_in_seconds")}
        request.answer(body=orjson.dumps(state))

    def _show_journal(self, request: Request) -> None:
        since = dict(parse_qsl(request.query)).get("since", "0")
        sends = self.journal.sends(int(since) if since.isdecimal() else 0)
        shown = {"total": len(self.journal), "access_tokens_issued": self.access_tokens.issued, "sends": sends}
        request.answer(body=orjson.dumps(shown))


def _reply(request: Request, reply: Reply) -> None:
    if reply.status is None:
        request.cut()
    elif reply.retry_after:
        headers = (("Content-Type", "application/json"), ("Retry-After", reply.retry_after))
        request.answer(reply.status, reply.body, headers)
    else:
        request.answer(reply.status, reply.body)


def _message_in(body: bytes) -> dict[str, Any]:
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    message = content.get("message") if isinstance(content, dict) else None
    return message if isinstance(message, dict) else {}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.fake_fcm.server", description="A fake FCM.")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--credentials", type=Path, required=True, help="the file for the service account")
    parser.add_argument("--delay-ms", type=int, default=0, help="the time of each answer")
    parser.add_argument("--journal", type=Path, help="a file to append each send to, as one line of JSON")
    return parser.parse_args()


def main() -> None:
    """Write the key file of the service account, print the base URL, and answer requests until SIGTERM or SIGINT."""
    arguments = _arguments()
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    with FcmStandin(port=arguments.port, delay_ms=arguments.delay_ms, journal_file=arguments.journal) as standin:
        arguments.credentials.touch(mode=0o600)
        arguments.credentials.write_bytes(orjson.dumps(standin.service_account()))
        sys.stdout.write(f"{standin.base_url}\n")
        sys.stdout.flush()
        stopped.wait()


if __name__ == "__main__":
    main()
