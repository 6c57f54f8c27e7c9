"""A line for every log record: JSON for machines that collect logs, words on a terminal."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

#: what records carry besides their message
_EXTRA = ("job", "request_id", "status", "seconds", "owner", "kind")


class JsonLines(logging.Formatter):
    """A log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, logger, message, what it carries, and a traceback if there is one."""
        entry: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {name: v for name in _EXTRA if (v := getattr(record, name, None)) is not None}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


class Words(logging.Formatter):
    """A log record as people read it: time, message, what it carries."""

    def format(self, record: logging.LogRecord) -> str:
        """As it says, with the level where that is no plain information."""
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        carried = {name: getattr(record, name, None) for name in _EXTRA if name != "kind"}
        rest = ", ".join(f"{name} {value}" for name, value in carried.items() if value)
        text = f"{self.formatTime(record, '%H:%M:%S')}  {level}{record.getMessage()}"
        text += f"  ({rest})" if rest else ""
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def log_to_stderr(level: str) -> None:
    """Log everything to stderr, a line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Words() if sys.stderr.isatty() else JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
