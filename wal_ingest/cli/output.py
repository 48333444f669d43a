"""How the command line speaks: results on standard output, everything else on standard error.

Exit codes: 0 done, 1 failed, 2 usage or settings, 3 the WAL needs an operator.
"""

from __future__ import annotations

import errno
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from wal_ingest.errors import ConfigError, OperatorNeeded, StorageFailed, WalIngestError

if TYPE_CHECKING:
    from rich.console import Console

_TABLE_CHARS_MAX = 240

DONE = 0
FAILED = 1
USAGE = 2
OPERATOR_NEEDED = 3


def print_json(value: object) -> None:
    """One JSON document, indented, ended by a line feed."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def wide_console() -> Console:
    """For tables: what does not fit is for the terminal to wrap, and whoever reads a pipe gets whole words."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True, width=_TABLE_CHARS_MAX)


def print_error(error: WalIngestError) -> int:
    """Says what is wrong and what to try, and returns the exit code that goes with it."""
    if isinstance(error, StorageFailed) and error.number in (errno.EACCES, errno.EPERM):
        error = not_permitted(error.path, error.reason)
    sys.stderr.write(f"error: {error}\n")
    if error.hint:
        sys.stderr.write(f"try: {error.hint}\n")
    if isinstance(error, ConfigError):
        return USAGE
    if isinstance(error, OperatorNeeded):
        return OPERATOR_NEEDED
    return FAILED


def not_permitted(path: str | Path, reason: str) -> ConfigError:
    """The error for what this user may not read or write, with the user who may. Nothing is damaged then."""
    return ConfigError(f"{path}: {reason}", hint=f"sudo -u {shlex.quote(_owner_of(Path(path)))} wal-ingest …")


def _owner_of(path: Path) -> str:
    """The user who owns a path, or the nearest folder above it that can be looked at."""
    import pwd

    for candidate in (path, *path.absolute().parents):
        try:
            owner = candidate.stat().st_uid
        except OSError:
            continue
        try:
            return pwd.getpwuid(owner).pw_name
        except KeyError:
            return f"#{owner}"
    return "root"


def confirm(question: str, *, yes: bool) -> None:
    """Asks on the terminal, unless `yes`; anything but a yes ends the command with exit code 1, nothing changed.

    Raises `ConfigError` where there is nobody to ask.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(
            "there is no terminal to ask on, and nothing was changed", hint="say --yes when you are sure"
        )
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        sys.stderr.write("nothing was changed\n")
        raise SystemExit(FAILED)


def points_text(points: int) -> str:
    """For people: 1 point, 3,000 points."""
    return count_text(points, "point", "points")


def entries_text(entries: int) -> str:
    """For people: 1 entry, 3,000 entries."""
    return count_text(entries, "entry", "entries")


def count_text(count: int, one: str, many: str) -> str:
    """For people: 1 line, 3,000 lines."""
    return f"{count:,} {one if count == 1 else many}"


def bytes_text(size: int) -> str:
    """A size for people: 31.4 MiB."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def age_text(age_s: float | None) -> str:
    """An age for people: 4 s, 12 min, 3.5 h, 2.1 d; a dash for none."""
    if age_s is None:
        return "-"
    if age_s < 120:
        return f"{age_s:.0f} s"
    if age_s < 7200:
        return f"{age_s / 60:.0f} min"
    if age_s < 172_800:
        return f"{age_s / 3600:.1f} h"
    return f"{age_s / 86_400:.1f} d"
