"""Structured logs: one line an event, to standard output, JSON unless LOG_FORMAT is console.

No line carries a token, key, signature or push token: what is logged is named at the call, never a whole request.
"""

import logging
import logging.config
import sys
from typing import Any

import orjson
import structlog
from structlog.typing import EventDict, Processor


def configure(*, level: str, style: str) -> None:
    """Route structlog's and the standard library's events through one renderer."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
    ]
    console = style == "console"
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, _renderer(console=console)],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.PrintLoggerFactory() if console else structlog.BytesLoggerFactory(),
        cache_logger_on_first_use=True,
    )
    logging.config.dictConfig(_standard_library(level, shared, console=console))


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
                    structlog.processors.format_exc_info,
                    renderer,
                ],
            }
        },
        "handlers": {
            "stdout": {"class": "logging.StreamHandler", "formatter": "structured", "stream": "ext://sys.stdout"}
        },
        "root": {"handlers": ["stdout"], "level": level},
        "loggers": {
            # Their "Bad Request" and "Not Found" lines repeat the metrics, and carry paths.
            "django.request": {"level": "ERROR"},
            "django.security.DisallowedHost": {"level": "CRITICAL"},
            "uvicorn.access": {"level": "CRITICAL"},
            "psycopg.pool": {"level": "ERROR"},
        },
    }
