"""A simulated FCM on this machine, which passes each push to a simulated phone.

The simulated FCM issues access tokens, and serves `messages:send` of the HTTP v1 API. FCM_BASE_URL and the service
account of the dispatcher must contain the address of the simulated FCM. A push for an unknown push target gets the
error UNREGISTERED.
"""

import secrets
from collections.abc import Callable
from typing import Any, Final, Self

import orjson
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from nexmdm.client.phone import Envelope

PROJECT: Final = "nexmdm-simulated"
_KEY_BITS: Final = 2048

TakePush = Callable[[Envelope], None]


class SimulatedFcm:
    """The simulated FCM. It listens while its context is open. `phones` maps push targets to phones."""

    def __init__(self, host: str, port: int) -> None:
        self.url = f"http://{host}:{port}"
        self.phones: dict[str, TakePush] = {}
        self._host, self._port = host, port
        self._access_tokens: set[str] = set()
        application = web.Application()
        application.router.add_post("/token", self._give_access_token)
        application.router.add_post(f"/v1/projects/{PROJECT}/messages:send", self._send)
        self._runner = web.AppRunner(application, access_log=None)

    async def __aenter__(self) -> Self:
        """Listen on the port. Raises OSError if the port cannot be used."""
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _give_access_token(self, _: web.Request) -> web.Response:
        token = secrets.token_urlsafe()
        self._access_tokens.add(token)
        return _json({"access_token": token, "expires_in": 3600, "token_type": "Bearer"})

    async def _send(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization", "").removeprefix("Bearer ") not in self._access_tokens:
            return _problem(401, "UNAUTHENTICATED", "")
        message = orjson.loads(await request.read())["message"]
        take_push = self.phones.get(message.get("fid") or message.get("token"))
        if take_push is None:
            return _problem(404, "NOT_FOUND", "UNREGISTERED")
        take_push(message["data"])
        return _json({"name": f"projects/{PROJECT}/messages/{secrets.token_hex(8)}"})


def service_account(url: str) -> dict[str, str]:
    """Return a new service account for the simulated FCM at `url`, as the content of a Google key file."""
    key = rsa.generate_private_key(public_exponent=65_537, key_size=_KEY_BITS)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return {
        "type": "service_account",
        "project_id": PROJECT,
        "private_key_id": "simulated",
        "private_key": pem.decode(),
        "client_email": f"simulated@{PROJECT}.invalid",
        "client_id": "1",
        "token_uri": f"{url}/token",
    }


def _json(content: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(content), status=status, content_type="application/json")


def _problem(status: int, name: str, code: str) -> web.Response:
    kind = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
    details = [{"@type": kind, "errorCode": code}] if code else []
    return _json({"error": {"code": status, "status": name, "message": name, "details": details}}, status)
