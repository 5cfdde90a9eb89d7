"""The evidence of a search for secrets: all secrets, the searched places, and an HTTP client that records secrets."""

import socket
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Self

import httpx
import orjson

from loadtest.testbed.connections import Server
from nexmdm.client.http_client import FleetClient

USER: Final = "auditor"
PASSWORD: Final = "a password that must not be read"  # noqa: S105
WRONG_PASSWORD: Final = "one that opens nothing, and must not be read"  # noqa: S105

OTHER_ADDRESS: Final = "127.0.0.2"
"""A second address of this machine. The server counts failed authentications for each address."""
SITE: Final = "/django-admin/"


@dataclass(slots=True)
class Evidence:
    """The secrets that were used, and the places that must not contain them.

    - `secrets`: the secrets, by kind.
    - `places`: the content of each place, by the name of the place.
    - `errors`: the answers with a status of 400 or above.
    - `pushed`: the words of the fake FCM (replies.py) that chose the answer of at least one push.
    - `pages`: the number of pages of the admin site that were read.
    - `exports`: the addresses of the exports that were read.
    """

    secrets: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    places: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    pushed: set[str] = field(default_factory=set)
    pages: int = 0
    exports: set[str] = field(default_factory=set)

    def secret(self, kind: str, text: str) -> str:
        """Record a secret of this kind, and return it."""
        self.secrets[kind].add(text)
        return text

    @property
    def statuses(self) -> set[int]:
        """The statuses of all answers that were errors."""
        return {int(error[:3]) for error in self.errors}


class Calls:
    """An HTTP client that records the secrets in its requests and answers, and every answer that is an error."""

    def __init__(self, url: str, configured: dict[str, str], evidence: Evidence) -> None:
        self.evidence = evidence
        self.url = url
        self.configured = configured
        self._http = httpx.Client(base_url=url, timeout=60, trust_env=False)
        there = httpx.HTTPTransport(local_address=OTHER_ADDRESS)
        self._from_other_address = httpx.Client(base_url=url, timeout=60, trust_env=False, transport=there)
        self._signing = FleetClient(url, key=configured["ADMIN_KEY"], secret=configured["HMAC_SECRET"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()
        self._from_other_address.close()
        self._signing.close()

    def call(
        self,
        method: str,
        target: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        *,
        from_other_address: bool = False,
    ) -> Any:
        """Send a request. Return the JSON of its answer, or the text if the answer is not JSON."""
        raw = body if isinstance(body, bytes) else b"" if body is None else orjson.dumps(body)
        kind = {"Content-Type": "application/json"} if raw else {}
        http = self._from_other_address if from_other_address else self._http
        answer = http.request(method, target, content=raw, headers={**kind, **(headers or {})})
        if answer.status_code >= 400:
            self.evidence.errors.append(f"{answer.status_code} {answer.headers} {answer.text}")
        with suppress(ValueError):
            return answer.json()
        return answer.text

    def signed(self, method: str, target: str, body: Any = None, **altered: str) -> Any:
        """Send a signed request. `altered` are headers that replace headers of the request after the request was
        signed.

        An underscore in a name of `altered` stands for a hyphen.
        """
        raw = b"" if body is None else orjson.dumps(body)
        headers = self._signing.sign(method, target, raw)
        self.evidence.secret("signature", headers["X-Signature"].removeprefix("v1="))
        return self.call(
            method, target, raw, headers | {name.replace("_", "-"): text for name, text in altered.items()}
        )

    def phone(self, target: str, bearer: str, body: Any = None) -> Any:
        """Send a request of a phone, and record the secrets in its answer."""
        answer = self.call("POST", target, body, {"Authorization": f"Bearer {bearer}"})
        for name in ("device_token", "command_key"):
            if isinstance(answer, dict) and name in answer:
                self.evidence.secret(name.replace("_", " "), answer[name])
        for command in answer.get("commands", ()) if isinstance(answer, dict) else ():
            self.evidence.secret("envelope's signature", command["signature"])
        return answer

    def unfinished(self, target: str, bearer: str) -> None:
        """Send a request whose body does not end, and add the answer to `errors` of the evidence."""
        server = Server.of(self.url)
        head = server.head("POST", target, {"Authorization": f"Bearer {bearer}", "Content-Length": "1000"})
        with socket.create_connection((server.host, server.port), timeout=60) as connection:
            connection.sendall(head + b"\r\n" + orjson.dumps({"push_token": bearer})[:-1])
            message = b"".join(iter(partial(connection.recv, 65_536), b""))
        self.evidence.errors.append(message.decode().removeprefix("HTTP/1.1 "))

    def enrollment_token(self, **fields: Any) -> str:
        """Create an enrollment token, record it as a secret, and return it."""
        made = self.signed("POST", "/admin/enrollment-tokens", fields)
        return self.evidence.secret("enrollment token", made["enrollment_token"])
