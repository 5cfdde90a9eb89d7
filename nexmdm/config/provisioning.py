"""The settings of provisioning, and the content of its QR code.

Android's setup wizard reads this content and installs the agent. The keys of the content are from
android.app.admin.DevicePolicyManager.

The functions before `content` check a setting. They return the setting, and raise Misconfigured if the setting is
invalid. An empty setting is valid.
"""

import base64
import re
from typing import Final, NotRequired
from urllib.parse import urlsplit

from django.conf import settings
from typing_extensions import TypedDict

from nexmdm.config import environment
from nexmdm.config.environment import ConfigError, Misconfigured

LONGEST_COMPONENT: Final = 512
LONGEST_DOWNLOAD_URL: Final = 1024
"""The limits LONGEST_COMPONENT and LONGEST_DOWNLOAD_URL are in characters.

Within these limits, the content fits into one QR code.
"""

_NAME: Final = "[A-Za-z][A-Za-z0-9_]*"
_CLASS_NAME: Final = "[A-Za-z_$][A-Za-z0-9_$]*"
_COMPONENT: Final = re.compile(rf"{_NAME}(\.{_NAME})+/\.?{_CLASS_NAME}(\.{_CLASS_NAME})*")
_HEXADECIMAL: Final = re.compile(r"([0-9A-Fa-f]{2}:?){32}")
_SHA256_BYTES: Final = 32

AdminExtras = TypedDict("AdminExtras", {"nexmdm.server_url": str, "nexmdm.enrollment_token": str})
Provisioning = TypedDict(
    "Provisioning",
    {
        "android.app.extra.PROVISIONING_DEVICE_ADMIN_COMPONENT_NAME": str,
        "android.app.extra.PROVISIONING_DEVICE_ADMIN_PACKAGE_DOWNLOAD_LOCATION": NotRequired[str],
        "android.app.extra.PROVISIONING_DEVICE_ADMIN_SIGNATURE_CHECKSUM": NotRequired[str],
        "android.app.extra.PROVISIONING_ADMIN_EXTRAS_BUNDLE": AdminExtras,
    },
)


def public_url(given: str) -> str:
    """Check the server's address for phones, PUBLIC_URL."""
    return environment.origin("PUBLIC_URL", "https://mdm.example.com") if given else ""


def agent_component(given: str) -> str:
    """Check the agent's package and the class of its device admin receiver."""
    if given and not (_COMPONENT.fullmatch(given) and len(given) <= LONGEST_COMPONENT):
        raise Misconfigured(
            ConfigError.MALFORMED,
            f"AGENT_COMPONENT must be a package and the class of a receiver, not {given!r}.",
            "Write AGENT_COMPONENT as com.example.agent/com.example.agent.AdminReceiver or "
            "com.example.agent/.AdminReceiver.",
        )
    return given


def agent_download_url(given: str) -> str:
    """Check the URL of the agent's APK."""
    if given and not _is_download_url(given):
        shown = "it contains a user or a password" if "@" in given else repr(given)
        raise Misconfigured(
            ConfigError.MALFORMED,
            f"AGENT_DOWNLOAD_URL is not the address of a file: {shown}.",
            "Write the address as https://mdm.example.com/agent.apk, percent-encoded, with at most "
            f"{LONGEST_DOWNLOAD_URL} characters.",
        )
    return given


def _is_download_url(given: str) -> bool:
    if not re.fullmatch(r"https?://[!-~]+", given) or "@" in given or len(given) > LONGEST_DOWNLOAD_URL:
        return False
    try:
        parsed = urlsplit(given)
        port = parsed.port
    except ValueError:
        return False
    return bool(parsed.hostname) and port != 0 and not parsed.fragment


def agent_signature_checksum(given: str) -> str:
    """Check the SHA-256 of the agent's signing certificate, in URL-safe base64."""
    if given and not _is_sha256(given):
        if _HEXADECIMAL.fullmatch(given):
            right = base64.urlsafe_b64encode(bytes.fromhex(given.replace(":", ""))).decode().rstrip("=")
            hint = f"Hexadecimal digits are not base64. Write the checksum as {right}."
        else:
            hint = (
                "Encode the SHA-256 (32 bytes) of the agent's signing certificate. See docs/operations/provisioning.md."
            )
        message = f"AGENT_SIGNATURE_CHECKSUM must be a SHA-256 in URL-safe base64 (43 characters), not {given!r}."
        raise Misconfigured(ConfigError.MALFORMED, message, hint)
    return given


def _is_sha256(given: str) -> bool:
    if not re.fullmatch(r"[A-Za-z0-9_-]{43}=?", given):
        return False
    digest = base64.urlsafe_b64decode(given.rstrip("=") + "=")
    return len(digest) == _SHA256_BYTES and base64.urlsafe_b64encode(digest).decode().rstrip("=") == given.rstrip("=")


def content(enrollment_token: str) -> Provisioning | None:
    """Return the content of the QR code with an enrollment token.

    Return None if PUBLIC_URL or AGENT_COMPONENT is not set.
    """
    if not (settings.PUBLIC_URL and settings.AGENT_COMPONENT):
        return None
    found: Provisioning = {
        "android.app.extra.PROVISIONING_DEVICE_ADMIN_COMPONENT_NAME": settings.AGENT_COMPONENT,
        "android.app.extra.PROVISIONING_ADMIN_EXTRAS_BUNDLE": {
            "nexmdm.server_url": settings.PUBLIC_URL,
            "nexmdm.enrollment_token": enrollment_token,
        },
    }
    if settings.AGENT_DOWNLOAD_URL:
        found["android.app.extra.PROVISIONING_DEVICE_ADMIN_PACKAGE_DOWNLOAD_LOCATION"] = settings.AGENT_DOWNLOAD_URL
    if settings.AGENT_SIGNATURE_CHECKSUM:
        found["android.app.extra.PROVISIONING_DEVICE_ADMIN_SIGNATURE_CHECKSUM"] = settings.AGENT_SIGNATURE_CHECKSUM
    return found
