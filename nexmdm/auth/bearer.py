"""Bearer tokens of phones. Only the form is checked here; the statement that does the work finds the owner."""

from typing import Any, Final

from django.http import HttpRequest
from ninja.security import HttpBearer

from devices import tokens
from devices.credentials import InvalidToken
from devices.enrollment import InvalidEnrollmentToken


class Bearer(HttpBearer):
    """A well-formed bearer token of one kind. The statement that does the work finds its owner."""

    def __init__(self, prefix: str, error: type[Exception], scheme: str) -> None:
        self._prefix = prefix
        self._error = error
        self.openapi_bearerFormat = scheme  # the name that Ninja reads
        super().__init__()

    async def __call__(self, request: HttpRequest) -> tokens.Token:
        """Return the token; raise the error of its kind if it is missing or malformed."""
        scheme, _, text = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
        token = tokens.parse(self._prefix, text.strip()) if scheme.lower() == "bearer" else None
        if token is None:
            raise self._error
        return token

    async def authenticate(self, request: HttpRequest, token: str) -> Any:  # pragma: no cover
        """Do nothing: __call__ does all of the work, and nothing calls this method."""
        raise NotImplementedError


class DeviceBearer(Bearer):
    """A phone's device token (`nxd_…`)."""


class EnrollmentBearer(Bearer):
    """An enrollment token (`nxe_…`)."""


DEVICE: Final = DeviceBearer(tokens.DEVICE_PREFIX, InvalidToken, "nxd_…")
ENROLLMENT: Final = EnrollmentBearer(tokens.ENROLLMENT_PREFIX, InvalidEnrollmentToken, "nxe_…")
