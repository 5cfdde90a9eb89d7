"""Structured logs: one line on standard output for each log event.

The format is JSON, or text for people if LOG_FORMAT is `console`. No line contains a token, a key, a signature or a
push token. For an error of PostgreSQL about data, the line names the violated rule but shows no data.
"""

import logging
import logging.config
import sys
import traceback
from typing import Any, Final

import orjson
import structlog
from structlog.typing import EventDict, ExcInfo, Processor

from nexmdm.common.postgresql.errors import safe_message


def configure(*, level: str, style: str) -> None:
    """Set up structlog and the standard library's logging, with the same format for both.

    `level` is a name such as `INFO`. `style` is `json` or `console`.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
    ]
    console = style == "console"
    structlog.configure(
        processors=[*shared, _TRACES, _renderer(console=console)],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.PrintLoggerFactory() if console else structlog.BytesLoggerFactory(),
        cache_logger_on_first_use=True,
    )
    logging.config.dictConfig(_standard_library(level, shared, console=console))


def _trace(exc_info: ExcInfo) -> str:
    """Return the traceback of an error and its causes as Python prints it. The messages contain no secrets."""
    error: BaseException | None = exc_info[1]
    parts: list[str] = []
    while error is not None:
        frames = "".join(traceback.format_tb(error.__traceback__))
        parts.append(f"Traceback (most recent call last):\n{frames}{type(error).__qualname__}: {safe_message(error)}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n\nThen:\n\n".join(reversed(parts))


_TRACES: Final = structlog.processors.ExceptionRenderer(_trace)


def _renderer(*, console: bool) -> Processor:
    if console:
        return structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty(), timestamp_key="at")
    return structlog.processors.JSONRenderer(serializer=_dumps)


def _dumps(event: EventDict, **_: Any) -> bytes:
    return orjson.dumps(event, default=str)


def _dumps_text(event: EventDict, **_: Any) -> str:
    return _dumps(event).decode()


def _standard_library(level: str, shared: list[Processor], *, console: bool) -> dict[str, Any]:
    renderer = _renderer(console=True) if console else structlog.processors.JSONRenderer(serializer=_dumps_text)
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "structured": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": [structlog.stdlib.add_logger_name, *shared],
                "processors": [
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    _TRACES,
                    renderer,
                ],
            }
        },
        "handlers": {
            "stdout": {"class": "logging.StreamHandler", "formatter": "structured", "stream": "ext://sys.stdout"}
        },
        "root": {"handlers": ["stdout"], "level": level},
        "loggers": {
            # The "Bad Request" and "Not Found" lines of this logger repeat the metrics, and contain paths.
            "django.request": {"level": "ERROR"},
            "django.security.DisallowedHost": {"level": "CRITICAL"},
            "uvicorn.access": {"level": "CRITICAL"},
            # Input that is not HTTP is logged as a refusal, and counted.
            "uvicorn.protocol": {"level": "ERROR"},
            "psycopg.pool": {"level": "ERROR"},
        },
    }
