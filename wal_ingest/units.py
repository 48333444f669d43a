"""Sizes and durations as people write them: `50GiB`, `1h30m`. Pure."""

from __future__ import annotations

import re

_BYTES = {
    "B": 1,
    "kB": 1000,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "K": 1024,
    "KiB": 1024,
    "M": 1024**2,
    "MiB": 1024**2,
    "G": 1024**3,
    "GiB": 1024**3,
    "T": 1024**4,
    "TiB": 1024**4,
}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*")
_DURATION_PART = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]+)\s*")


def parse_bytes(text: str) -> int | None:
    """The bytes of a size with a unit, such as `50GiB` or `1.5 MB`; None when the text is no such size.

    `K`, `M`, `G` and `T` alone are powers of 1024, as in systemd and Docker.
    """
    found = _SIZE.fullmatch(text)
    if found is None or found[2] not in _BYTES:
        return None
    return round(float(found[1]) * _BYTES[found[2]])


def parse_seconds(text: str) -> float | None:
    """The seconds of a duration with units, such as `500ms`, `1h` or `1h30m`; None when the text is none."""
    seconds, position = 0.0, 0
    while position < len(text):
        found = _DURATION_PART.match(text, position)
        if found is None or found[2] not in _SECONDS:
            return None
        seconds += float(found[1]) * _SECONDS[found[2]]
        position = found.end()
    return seconds if position else None
