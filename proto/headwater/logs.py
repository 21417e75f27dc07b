"""Log lines on standard error: for people, or JSON objects for programs."""

import json
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

FIELDS = ("job", "round", "assignment", "client")
"""What a line says of its subject, where it has one: given as `extra=` of a log call."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the subject's fields, and what is
    `always` in it.
    """

    def __init__(self, **always: str) -> None:
        super().__init__()
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        """The line, with a traceback for a defect."""
        at = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._always,
            **dict(_subject(record)),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """Time, level, message, subject; control characters are shown as blanks."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and a traceback for a defect."""
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        message = "".join(one if one.isprintable() else " " for one in record.getMessage())
        subject = (f"{name}={value}" for name, value in _subject(record))
        line = " ".join((at, record.levelname.lower(), message, *subject))
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure_logs(log_format: str, *, verbose: bool = False, **always: str) -> None:
    """Send our log to standard error, `text` or `json`; other libraries' only from warnings on.

    `always` is in each JSON object.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(**always) if log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("headwater").setLevel(logging.DEBUG if verbose else logging.INFO)


def _subject(record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
    return ((name, getattr(record, name)) for name in FIELDS if hasattr(record, name))
