"""The bearer tokens of phones. Only the form of a token is checked here.

The SQL statement that does the work of a request also finds the owner of the token.
"""

from typing import Any, Final

from django.http import HttpRequest
from ninja.security import HttpBearer

from devices import tokens
from devices.credentials import InvalidToken
from devices.enrollment import InvalidEnrollmentToken


class Bearer(HttpBearer):
    """The authentication by a bearer token of one kind. Only the form of the token is checked.

    `prefix` is the beginning of each token of this kind. `error` is raised if a token is missing or malformed.
    """

    def __init__(self, prefix: str, error: type[Exception], scheme: str) -> None:
        self._prefix = prefix
        self._error = error
        self.openapi_bearerFormat = scheme  # the name that Ninja reads
        super().__init__()

    async def __call__(self, request: HttpRequest) -> tokens.Token:
        """Return the token of a request. Raises `error` if the token is missing or malformed."""
        scheme, _, text = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
        token = tokens.parse(self._prefix, text.strip()) if scheme.lower() == "bearer" else None
        if token is None:
            raise self._error
        return token

    async def authenticate(self, request: HttpRequest, token: str) -> Any:  # pragma: no cover
        """Raise NotImplementedError: Ninja requires this method, but __call__() never calls it."""
        raise NotImplementedError


class DeviceBearer(Bearer):
    """A phone's device token (`nxd_…`)."""


class EnrollmentBearer(Bearer):
    """An enrollment token (`nxe_…`)."""


DEVICE: Final = DeviceBearer(tokens.DEVICE_PREFIX, InvalidToken, "nxd_…")
ENROLLMENT: Final = EnrollmentBearer(tokens.ENROLLMENT_PREFIX, InvalidEnrollmentToken, "nxe_…")
