"""All settings of NexMDM. Every value comes from the environment.

docs/operations/settings.md lists the names and the defaults.
"""

import sys
from pathlib import Path
from typing import Any

from nexmdm.common.postgresql.connection import Connection, Cursor
from nexmdm.config import database_url, environment, logging, named_admins, provisioning
from nexmdm.standalone import embedded_postgres

BASE_DIR = Path(__file__).resolve().parent.parent
DATA_DIR = Path(environment.text("NEXMDM_DATA_DIR", str(BASE_DIR / ".nexmdm"))).expanduser().resolve()
SECRETS_FILE = DATA_DIR / "secrets.env"

_DATABASE_URL = environment.text("DATABASE_URL")
EMBEDDED = not _DATABASE_URL
_GENERATED = environment.generated_secrets(SECRETS_FILE) if EMBEDDED else None

DEBUG = False
SECRET_KEY = environment.secret("SECRET_KEY", _GENERATED)
SECRET_KEY_FALLBACKS = environment.previous_secrets("SECRET_KEY_FALLBACKS")
# The first value is the current value. The next values are previous values.
ADMIN_KEYS = [environment.secret("ADMIN_KEY", _GENERATED), *environment.previous_secrets("ADMIN_KEY_PREVIOUS")]
HMAC_SECRETS = [environment.secret("HMAC_SECRET", _GENERATED), *environment.previous_secrets("HMAC_SECRET_PREVIOUS")]
# The keys and the secrets of the named admins, by principal.
NAMED_ADMIN_KEYS, NAMED_HMAC_SECRETS = named_admins.keys_and_secrets()
COMMAND_SIGNING_KEYS = [
    environment.secret("COMMAND_SIGNING_KEY", _GENERATED),
    *environment.previous_secrets("COMMAND_SIGNING_KEY_PREVIOUS"),
]

FIREBASE_SERVICE_ACCOUNT = environment.firebase_service_account()
FCM_BASE_URL = environment.origin("FCM_BASE_URL", "https://fcm.googleapis.com")
FCM_MAX_PER_SECOND = environment.whole("FCM_MAX_PER_SECOND", 5000, minimum=1, maximum=1_000_000)

HOST = environment.listening_host("HOST", "127.0.0.1")
PORT = environment.whole("PORT", 8000, minimum=0, maximum=65535)
WEB_WORKERS = environment.whole("WEB_WORKERS", 1, minimum=1, maximum=64)
LOOPBACK_HOSTS = ["localhost", "127.0.0.1", "[::1]"]
ALLOWED_HOSTS = environment.hosts("ALLOWED_HOSTS", LOOPBACK_HOSTS)
TRUSTED_PROXIES = environment.networks("TRUSTED_PROXIES")
WEBHOOK_ALLOW_PRIVATE = environment.networks("WEBHOOK_ALLOW_PRIVATE")
MAX_CONNECTIONS = environment.whole("MAX_CONNECTIONS", 10_000, minimum=1, maximum=1_000_000)
MAX_CONNECTIONS_PER_ADDRESS = environment.whole(
    "MAX_CONNECTIONS_PER_ADDRESS", max(1, min(2000, MAX_CONNECTIONS // 5)), minimum=1, maximum=MAX_CONNECTIONS
)

# For the QR codes of provisioning: docs/operations/provisioning.md.
PUBLIC_URL = provisioning.public_url(environment.text("PUBLIC_URL"))
AGENT_COMPONENT = provisioning.agent_component(environment.text("AGENT_COMPONENT"))
AGENT_DOWNLOAD_URL = provisioning.agent_download_url(environment.text("AGENT_DOWNLOAD_URL"))
AGENT_SIGNATURE_CHECKSUM = provisioning.agent_signature_checksum(environment.text("AGENT_SIGNATURE_CHECKSUM"))

HEARTBEAT_INTERVAL_SECONDS = environment.whole("HEARTBEAT_INTERVAL_SECONDS", 120, minimum=5, maximum=86_400)
ADMIN_RATE_LIMIT = environment.rate("ADMIN_RATE_LIMIT", "120/m")
ADMIN_READ_RATE_LIMIT = environment.rate("ADMIN_READ_RATE_LIMIT", "1200/m")
AUTH_FAILURE_RATE_LIMIT = environment.rate("AUTH_FAILURE_RATE_LIMIT", "60/m")
LOGIN_RATE_LIMIT = environment.rate("LOGIN_RATE_LIMIT", "20/m")
DEVICE_RATE_LIMIT = environment.rate("DEVICE_RATE_LIMIT", "300/m")
RETENTION_DAYS = environment.whole("RETENTION_DAYS", 90, minimum=1, maximum=3650)
EVENT_RETENTION_DAYS = environment.whole("EVENT_RETENTION_DAYS", 30, minimum=1, maximum=3650)
BCRYPT_ROUNDS = environment.whole("BCRYPT_ROUNDS", 10, minimum=4, maximum=16)
API_DOCS = environment.flag("API_DOCS", default=EMBEDDED)
METRICS_TOKEN = environment.optional_secret("METRICS_TOKEN")
# prometheus_client reads this variable itself. All processes of one machine write their metrics to this folder.
PROMETHEUS_MULTIPROC_DIR = environment.folder("PROMETHEUS_MULTIPROC_DIR")
LOG_LEVEL = environment.choice("LOG_LEVEL", "INFO", ("DEBUG", "INFO", "WARNING", "ERROR"))
_AT_A_TERMINAL = sys.stdout.isatty()
LOG_FORMAT = environment.choice("LOG_FORMAT", "console" if _AT_A_TERMINAL else "json", ("json", "console"))
HEARTBEAT_LOG = environment.choice("HEARTBEAT_LOG", "summary" if _AT_A_TERMINAL else "each", ("each", "summary"))

# The most connections of one process. docs/operations/settings.md shows how many connections all processes use.
DATABASE_POOL_SIZE = environment.whole("DATABASE_POOL_SIZE", 8, minimum=2, maximum=200)
# The longest time that work waits for a connection, in seconds.
POOL_TIMEOUT_SECONDS = 2
# How long the pool tries to reconnect. The next request starts a new try. The default is five minutes with growing
# pauses: the pool could then wait for a long time although PostgreSQL is available again.
POOL_RECONNECT_SECONDS = 0.2
STATEMENT_TIMEOUT_SECONDS = environment.whole("STATEMENT_TIMEOUT_SECONDS", 7, minimum=1, maximum=3600)
LOCK_TIMEOUT_SECONDS = environment.whole("LOCK_TIMEOUT_SECONDS", 5, minimum=1, maximum=3600)


def connected(database: dict[str, Any]) -> dict[str, Any]:
    """Return an entry of DATABASES for a database.

    `database` contains Django's settings for the address of the database, such as NAME and HOST.
    """
    options = database_url.options(
        database.get("OPTIONS", {}), statement_seconds=STATEMENT_TIMEOUT_SECONDS, lock_seconds=LOCK_TIMEOUT_SECONDS
    )
    pool = {
        "connection_class": Connection,
        "min_size": 1,
        "max_size": DATABASE_POOL_SIZE,
        "reconnect_timeout": POOL_RECONNECT_SECONDS,
    }
    return {
        "ENGINE": "nexmdm.common.postgresql",
        **database,
        "CONN_MAX_AGE": 0,
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": {**options, "cursor_factory": Cursor, "pool": pool},
    }


DATABASES = {
    "default": connected(
        embedded_postgres.database(DATA_DIR) if EMBEDDED else database_url.django_settings(_DATABASE_URL)
    )
}
# For LISTEN and migrations, if DATABASE_URL is the address of a connection pooler.
_DIRECT_URL = environment.text("DIRECT_DATABASE_URL")
DIRECT_DATABASE = connected(database_url.django_settings(_DIRECT_URL, "DIRECT_DATABASE_URL")) if _DIRECT_URL else None
CACHES = {"default": {"BACKEND": "nexmdm.auth.rate_limit_windows.CounterCache"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"
USE_I18N = False

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "nexmdm.apps.NexmdmConfig",
    "commands",
    "devices",
    "django.contrib.admin.apps.SimpleAdminConfig",
    "ninja",
]
ROOT_URLCONF = "nexmdm.urls"
ASGI_APPLICATION = "nexmdm.asgi.application"

# Only for /django-admin/. nexmdm/http/application.py has the layers around the API.
MIDDLEWARE = [
    "nexmdm.admin_site.content_policy.content_security_policy",
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]
STATIC_URL = "/static/"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
PASSWORD_HASHERS = ["nexmdm.admin_site.passwords.PasswordHasher"]
LOGIN_REDIRECT_URL = "admin:index"
CSRF_FAILURE_VIEW = "nexmdm.admin_site.error_pages.csrf_failure"
SESSION_ENGINE = "nexmdm.admin_site.sessions"
SESSION_COOKIE_AGE = 12 * 3600
# With the embedded database, the site is served by http on loopback. There, browsers do not send a Secure cookie back.
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = not (
    EMBEDDED and not TRUSTED_PROXIES and set(ALLOWED_HOSTS) <= set(LOOPBACK_HOSTS)
)
# The proxy in front of NexMDM has the certificate, sets HSTS and redirects to https (docs/operations/proxy.md).
SILENCED_SYSTEM_CHECKS = ["security.W004", "security.W008"]

LOGGING_CONFIG = None
logging.configure(level=LOG_LEVEL, style=LOG_FORMAT)
