"""What the node says of itself in words: structured logs on standard error.

One line per event, never one per point, and none for a request that was accepted. A log line carries no token, no
password and no body: whatever a setting marks as secret is masked in every text of an event, tracebacks among them,
before it is written.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
from collections.abc import Collection, Mapping
from urllib.parse import quote

import structlog

from wal_ingest.config import FIELDS, MASK
from wal_ingest.log_stream import LogStream
from wal_ingest.settings import LogSettings, Settings


def secrets_in(settings: Settings) -> list[str]:
    """The values of all settings that are marked secret and given."""
    values = [
        getattr(getattr(settings, field.section), field.key) for field in FIELDS.values() if field.secret
    ]
    return [str(value) for value in values if value]


# The stream of a process that must never wait for the reader of its log lines.
_stream: LogStream | None = None
# At an orderly exit the last lines are worth waiting for, unless nothing reads them.
_EXIT_FLUSH_S_MAX = 2.0


def flush_logs(s_max: float) -> None:
    """Waits until the log lines so far are written, at most `s_max` seconds."""
    if _stream is not None:
        _stream.drain(s_max)


def _background_stream(*, as_text: bool) -> LogStream:
    fd = sys.stderr.fileno()

    def write_all(data: bytes) -> None:
        while data:
            data = data[os.write(fd, data) :]

    def dropped_line(count: int) -> str:
        event = "log lines dropped: standard error was not read fast enough"
        if as_text:
            return f"[warning] {event} dropped_lines={count}\n"
        return json.dumps({"event": event, "level": "warning", "dropped_lines": count}) + "\n"

    stream = LogStream(write_all, dropped_line=dropped_line)
    atexit.register(stream.drain, _EXIT_FLUSH_S_MAX)
    return stream


def configure_logging(
    settings: LogSettings, *, secrets: Collection[str] = (), in_background: bool = False
) -> None:
    """Sends every log line, our own and the libraries', to standard error in one format, with `secrets` masked.

    The format is for people on a terminal and JSON elsewhere, unless the settings say which. With `in_background` a
    thread writes the lines, so that no caller ever waits for standard error; see `log_stream`.
    """
    as_text = settings.format == "text" or (settings.format == "auto" and sys.stderr.isatty())
    renderer: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if as_text
        else structlog.processors.JSONRenderer()
    )
    before: list[structlog.types.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*before, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(_severity(settings.level)),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    global _stream
    _stream = _background_stream(as_text=as_text) if in_background else None
    handler = logging.StreamHandler(_stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                Mask(secrets),
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(_severity(settings.level))


class Mask:
    """A processor that replaces secrets in every text of an event, however deep it lies.

    Anything that is neither text, number nor a collection of these becomes the text that would be written for it, if
    that text holds a secret.
    """

    def __init__(self, secrets: Collection[str]) -> None:
        # Also as it stands in a query; the longest first, so that none is cut up by a part of it.
        forms = {form for secret in secrets if secret for form in (secret, quote(secret, safe=""))}
        self._forms = sorted(forms, key=len, reverse=True)

    def __call__(
        self, _logger: object, _name: str, event: structlog.types.EventDict
    ) -> structlog.types.EventDict:
        """The event without secrets."""
        if not self._forms:
            return event
        return {self._text(key): self._masked(value) for key, value in event.items()}

    def _masked(self, value: object) -> object:
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, Mapping):
            return {self._masked(key): self._masked(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self._masked(inner) for inner in value]
        written = repr(value)
        masked = self._text(written)
        return value if masked == written and self._text(str(value)) == str(value) else masked

    def _text(self, text: str) -> str:
        for form in self._forms:
            if form in text:
                text = text.replace(form, MASK)
        return text


def _severity(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]
