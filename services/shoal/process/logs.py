"""Logs by structlog: an event name, ids as fields, text for people. Console or JSON, always on stderr."""

import logging
import sys

import structlog


def configure_logs(*, log_format: str, level: str, **fields: str) -> None:
    """Sets up the process' logs once. `fields` (role, worker_id, ...) stand on every line."""
    number = getattr(logging, level.upper())
    logging.basicConfig(level=number, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s", force=True)
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**fields)
    _FIELDS.update(fields)


_FIELDS: dict[str, str] = {}


def get_logger(**fields: str) -> structlog.typing.FilteringBoundLogger:
    """A logger with the process' fields (context variables do not reach other threads) and the caller's."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger().bind(**{**_FIELDS, **fields})
    return logger
