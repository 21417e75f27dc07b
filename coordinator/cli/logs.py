"""The coordinator's log: lines for people, or JSON objects for programs."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

FIELDS = ("job", "round", "client")
"""What a line says of its subject, where it has one."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the subject's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """Time, level, subject, message; control characters are shown as blanks."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and a traceback for a defect."""
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        subject = " ".join(
            f"{name}={getattr(record, name)}" for name in FIELDS if hasattr(record, name)
        )
        message = "".join(one if one.isprintable() else " " for one in record.getMessage())
        line = " ".join(filter(None, (at, record.levelname.lower(), message, subject)))
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure_logs(log_format: str, level: int = logging.INFO) -> None:
    """Send our log to standard error in this format; other libraries only from warnings on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("headwater").setLevel(level)
