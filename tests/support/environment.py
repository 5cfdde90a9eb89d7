"""Settings of the test run, set before Django reads any (a pytest plugin, loaded with -p)."""

import os
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent.parent
_DATA_DIR = os.environ.get("NEXMDM_TEST_DATA_DIR", str(_ROOT / ".nexmdm-test"))
_PROCESS = os.environ.get("PYTEST_XDIST_WORKER", "")
"""pytest-xdist's name of this process, one of several: each has its own PostgreSQL."""

os.environ.update(
    NEXMDM_DATA_DIR=f"{_DATA_DIR}-{_PROCESS}" if _PROCESS else _DATA_DIR,
    BCRYPT_ROUNDS="4",
    LOG_LEVEL="INFO",
    LOG_FORMAT="json",
    PYTHON_KEYRING_BACKEND="keyring.backends.fail.Keyring",
)
for _name in (
    "NEXMDM_URL", "NEXMDM_PROFILE", "XDG_CONFIG_HOME", "XDG_STATE_HOME",
    "DATABASE_URL", "SECRET_KEY", "SECRET_KEY_FALLBACKS", "ADMIN_KEY", "ADMIN_KEY_PREVIOUS", "HMAC_SECRET",
    "HMAC_SECRET_PREVIOUS", "COMMAND_SIGNING_KEY", "COMMAND_SIGNING_KEY_PREVIOUS", "FIREBASE_SERVICE_ACCOUNT_JSON",
    "GOOGLE_APPLICATION_CREDENTIALS", "METRICS_TOKEN", "FCM_BASE_URL", "ALLOWED_HOSTS", "TRUSTED_PROXIES", "API_DOCS",
    "PROMETHEUS_MULTIPROC_DIR", "HEARTBEAT_INTERVAL_SECONDS", "WEB_WORKERS", "DATABASE_POOL_SIZE", "HEARTBEAT_LOG",
    "HOST", "ADMIN_RATE_LIMIT", "ADMIN_READ_RATE_LIMIT", "AUTH_FAILURE_RATE_LIMIT", "LOGIN_RATE_LIMIT",
    "PUBLIC_URL", "AGENT_COMPONENT", "AGENT_DOWNLOAD_URL", "AGENT_SIGNATURE_CHECKSUM", "WEBHOOK_ALLOW_PRIVATE",
    "DEVICE_RATE_LIMIT", "MAX_CONNECTIONS", "MAX_CONNECTIONS_PER_ADDRESS",
):  # fmt: skip
    os.environ.pop(_name, None)
for _name in [_name for _name in os.environ if _name.startswith(("ADMIN_KEY_", "HMAC_SECRET_"))]:
    del os.environ[_name]
