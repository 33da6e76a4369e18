"""How the server writes its log: one record a line, as text or as JSON, with job and request id where there is one.

Whatever callers send reaches the log escaped: a line break in a prompt or a path cannot forge a second record.
"""

import json
import logging
import sys
import time
from typing import Any, Literal

_FIELDS = ("job", "request", "s")  # what `extra=` may carry


def configure_logging(level: Literal["debug", "info", "warning", "error"], *, as_json: bool) -> None:
    """Send every record of the process to stderr; uvicorn's own loggers included."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONLines() if as_json else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.INFO, _number(level)))  # at debug level libraries write too much
    logging.getLogger("i2v").setLevel(_number(level))
    for chatty in ("uvicorn", "httpx", "httpcore", "huggingface_hub", "filelock"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, _number(level)))


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


def one_line(text: str) -> str:
    """The text with everything that is not printable escaped, line breaks included."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class TextLines(logging.Formatter):
    """`2026-01-31 12:00:00 INFO i2v.server accepted job=video_... request=req_...`"""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        parts = [when, record.levelname, record.name, one_line(record.getMessage())]
        parts += [f"{name}={one_line(str(value))}" for name, value in _extras(record).items()]
        if record.exc_info:
            parts.append(one_line(self.formatException(record.exc_info)))
        return " ".join(parts)


class JSONLines(logging.Formatter):
    """One object a line: time, level, logger, message, and the extras."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        fields = {"time": when, "level": record.levelname.lower(), "logger": record.name}
        fields |= {"message": record.getMessage(), **_extras(record)}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    found = {name: getattr(record, name, None) for name in _FIELDS}
    return {
        name: round(value, 3) if isinstance(value, float) else value
        for name, value in found.items()
        if value is not None
    }
