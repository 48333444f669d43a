"""Pieces: runs of records that were found to be points, ready to be sent.

Records are checked here as the node checks them, so that one that is no point is found before anything behind it is on
its way. They are sent as they are: a line without a time gets that of its acceptance by the node.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate

from wal_ingest.cli.send.cutting import Place
from wal_ingest.cli.send.formats import Format
from wal_ingest.cli.sifting import Refused
from wal_ingest.errors import ConfigError
from wal_ingest.points import Lines, Precision
from wal_ingest.points.csv_points import CsvMapping
from wal_ingest.points.json_points import accept_json, accept_ndjson
from wal_ingest.points.line_protocol import accept_line_protocol
from wal_ingest.points.text import readable
from wal_ingest.settings import ServerSettings

Accept = Callable[[Sequence[bytes]], Lines]

_LIMITS = ServerSettings()
_PRECISIONS = {each.name.lower(): each for each in (Precision.NS, Precision.US, Precision.MS, Precision.S)}


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """What decides the bytes of a piece, besides the file.

    `format` None is found out; `precision` "" is the format's own.
    """

    format: Format | None = None
    precision: str = ""
    records_max: int = 1_000
    delimiter: str = ""
    columns: tuple[str, ...] = ()
    mapping: CsvMapping = field(default_factory=CsvMapping)


def unit_of(precision: str) -> Precision | None:
    """The unit of times that was named, if one was. Raises `ConfigError`."""
    if not precision:
        return None
    try:
        return _PRECISIONS[precision]
    except KeyError:
        raise ConfigError(
            f"{precision!r} is no unit of times", hint=f"give one of {', '.join(_PRECISIONS)}"
        ) from None


def body_of(form: Format, records: Sequence[bytes]) -> bytes:
    """Records as they are sent."""
    if form is Format.JSON:
        return b"[" + b",".join(records) + b"]"
    return b"".join(records)


def acceptor(form: Format, unit: Precision | None, *, now_ns: int) -> Accept:
    """The check that a node on its defaults makes. It raises `RequestError`."""
    accept: Callable[..., Lines]
    if form is Format.JSON or form is Format.NDJSON:
        accept = accept_json if form is Format.JSON else accept_ndjson
        accept = partial(accept, precision=unit or Precision.MS, depth_max=_LIMITS.json_depth_max)
    else:
        precision = unit or Precision.NS
        # Sent as it stands: the node reads bytes that are not UTF-8 by the same rule.
        return lambda records: accept_line_protocol(
            readable(body_of(form, records)),
            precision=precision,
            now_ns=now_ns,
            line_bytes_max=_LIMITS.line_bytes_max,
        )
    return lambda records: accept(
        body_of(form, records), now_ns=now_ns, line_bytes_max=_LIMITS.line_bytes_max
    )


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that is no point, and why."""

    record: bytes
    why: Refused

    @property
    def text(self) -> bytes:
        """For the file of rejected records: the reason as a comment, then the record."""
        return b"# %b\n%b\n" % (str(self.why).encode(), self.record.removesuffix(b"\n"))


@dataclass(frozen=True, slots=True)
class Piece:
    """Records between two places of a file, all of them points but for those `rejected`. `points` may be none."""

    file: int
    name: str
    start: Place
    end: Place
    format: Format
    records: Sequence[bytes]
    numbers: Sequence[int]
    points: int
    rejected: tuple[Rejected, ...] = ()
    precision: str = ""
    """Of its times; "" is the format's own."""
    file_bytes: int = 0
    """Of the file itself, for a bar."""

    @property
    def unit_name(self) -> str:
        """What `numbers` count."""
        return "index" if self.format is Format.JSON else "line"

    @property
    def body(self) -> bytes:
        """What is sent."""
        return body_of(self.format, self.records)

    def record_at(self, line: int) -> int:
        """The index of the record that has this line of the body, from 1; -1 without one."""
        ends = list(accumulate(max(1, record.count(b"\n")) for record in self.records))
        at = bisect_left(ends, line)
        return at if line > 0 and at < len(ends) else -1

    def without(self, at: int, reason: str, column: object = None) -> Piece:
        """The piece without one of its records, which the node refused."""
        why = Refused(self.name, self.numbers[at], reason, unit=self.unit_name, column=column)
        return replace(
            self,
            records=[*self.records[:at], *self.records[at + 1 :]],
            numbers=[*self.numbers[:at], *self.numbers[at + 1 :]],
            points=self.points - 1,
            rejected=(*self.rejected, Rejected(self.records[at], why)),
        )
