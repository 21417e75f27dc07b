"""Log lines on standard error, for people or for machines."""

import json
import logging
import sys
from datetime import UTC, datetime

_CONTEXT = ("job", "round", "assignment")


class TextFormatter(logging.Formatter):
    """`TIME LEVEL message  job=… round=… assignment=…`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback where there is one."""
        context = "".join(f"  {key}={value}" for key, value in _context(record).items())
        line = f"{_time(record)} {record.levelname.lower():7} {record.getMessage()}{context}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, client_id: str) -> None:
        super().__init__()
        self._client_id = client_id

    def format(self, record: logging.LogRecord) -> str:
        """The object, with a traceback where there is one."""
        fields = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "client": self._client_id,
            **_context(record),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def configure_logs(log_format: str, client_id: str, *, verbose: bool = False) -> None:
    """Send everything that this program logs to standard error, as `text` or `json` lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter() if log_format == "text" else JsonFormatter(client_id))
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(level=level, handlers=[handler], force=True)


def _context(record: logging.LogRecord) -> dict[str, object]:
    return {key: getattr(record, key) for key in _CONTEXT if hasattr(record, key)}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
