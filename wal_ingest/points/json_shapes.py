"""The shapes of a JSON point, and how they are written as lines.

The fleet's shape, `{"serverId": "web-17", "cpu": 0.42, "ram": 0.61, "timestamp": 1763800000000}`, becomes the
measurement `server_metrics` with the tag `server_id` and the float fields `cpu` and `ram`. The general shape is
`{"measurement": "m", "tags": {"k": "v"}, "fields": {"f": 1.5}, "timestamp": 1763800000000}`. Telegraf's JSON is the
general shape with `name` for `measurement`.

JSON has one type of number, so every number becomes a float: were 1 an integer field, the 1.5 that follows it
would conflict with it in the database. What a line cannot carry is refused by name rather than changed:
see `names`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec
from msgspec import UNSET, Struct, UnsetType

from wal_ingest.errors import PointError
from wal_ingest.points.exact import TIME_NS_MAX, TIME_NS_MIN
from wal_ingest.points.lines import Precision
from wal_ingest.points.names import (
    IN_FIELD_KEY,
    IN_MEASUREMENT,
    IN_TAG,
    Place,
    check_runs,
    name_text,
    string_text,
)
from wal_ingest.points.times import TimeGuess

MEASUREMENT = "server_metrics"
SERVER_TAG = "server_id"

_OUT_OF_RANGE = "the timestamp is out of range"


# Up to here every integer is a float.
EXACT_INT_MAX = 1 << 53


class FleetPoint(Struct, forbid_unknown_fields=True, gc=False):
    """The fleet's shape, for bodies that hold nothing else."""

    server_id: str = msgspec.field(name="serverId")
    # Not float alone: of an integer that becomes a float one could no longer see that it was too large.
    cpu: float | int
    ram: float | int
    timestamp: int | None = None


class AnyPoint(Struct, forbid_unknown_fields=True):
    """Any shape; `LineWriter` tells which."""

    server_id: str | UnsetType = msgspec.field(default=UNSET, name="serverId")
    cpu: float | int | UnsetType = UNSET
    ram: float | int | UnsetType = UNSET
    measurement: str | UnsetType = UNSET
    tags: dict[str, str] | UnsetType = UNSET
    fields: dict[str, float | int | str | bool] | UnsetType = UNSET
    timestamp: int | None = None
    # Telegraf's JSON has the measurement under this name.
    name: str | UnsetType = UNSET


# -- the fleet's shape in bulk ----------------------------------------------------------------------------

_PLAIN = r"[^\x00-\x20\x7f,=\\]"
_PLAIN_IDS = re.compile(rf"(?:{_PLAIN}++\n)*+{_PLAIN}++")
_encode = msgspec.json.Encoder().encode


def fleet_lines(points: list[FleetPoint], *, precision: Precision, now_ns: int) -> bytes:
    """All points as lines, column by column: a quarter of the time that formatting them one by one takes.

    The JSON encoder writes a whole column of numbers at once, and every float in a form that is line protocol's
    too. Raises PointError with the index of the first point that a line cannot carry.
    """
    try:
        return _columns(points, precision, now_ns)
    except PointError as exc:
        if exc.index:
            # The columns are checked one after the other: an earlier point may have a fault in a later column.
            fleet_lines(points[: exc.index], precision=precision, now_ns=now_ns)
        raise


def _columns(points: list[FleetPoint], precision: Precision, now_ns: int) -> bytes:
    ids = _server_ids(points)
    times = [now_ns if p.timestamp is None else p.timestamp * precision.value for p in points]
    if min(times) < TIME_NS_MIN or max(times) > TIME_NS_MAX:
        index = next(i for i, time in enumerate(times) if not TIME_NS_MIN <= time <= TIME_NS_MAX)
        raise PointError(_OUT_OF_RANGE, index=index)
    begin = f"{MEASUREMENT},{SERVER_TAG}="
    parts = ["", " cpu=", "", ",ram=", "", " ", "", "\n" + begin] * len(points)
    parts[0::8] = ids
    parts[2::8] = _float_texts([point.cpu for point in points])
    parts[4::8] = _float_texts([point.ram for point in points])
    parts[6::8] = _number_texts(times)
    parts[-1] = "\n"
    return (begin + "".join(parts)).encode()


def _float_texts(column: list[float | int]) -> list[str]:
    """The numbers of a column as floats. Raises PointError with the index of the first integer beyond 2^53."""
    texts = _number_texts(column)
    # One pass in C over the types: bodies of floats, the usual ones, pay no more.
    if int in set(map(type, column)):
        for index, value in enumerate(column):
            if isinstance(value, int):
                try:
                    texts[index] = repr(_exact_float(value))
                except ValueError as exc:
                    raise PointError(str(exc), index=index) from None
    return texts


def _exact_float(value: int) -> float:
    """The same number as a float. Raises ValueError beyond 2^53."""
    if abs(value) > EXACT_INT_MAX:
        raise ValueError(
            "an integer beyond 2^53, which a float cannot hold exactly: send it as line protocol, with an 'i' "
            "after it, or as a string"
        )
    return float(value)


def _number_texts(column: list[float | int] | list[int]) -> list[str]:
    return _encode(column)[1:-1].decode().split(",")


def _server_ids(points: list[FleetPoint]) -> list[str]:
    """The server ids as they stand in a line; one match over all of them tells whether any needs a closer look."""
    ids = [point.server_id for point in points]
    joined = "\n".join(ids)
    if _PLAIN_IDS.fullmatch(joined) and joined.count("\n") == len(ids) - 1:
        return ids
    written = []
    for index, server_id in enumerate(ids):
        try:
            written.append(name_text(server_id, "serverId", IN_TAG))
        except ValueError as exc:
            raise PointError(str(exc), index=index) from None
    return written


# -- either shape, point by point -------------------------------------------------------------------------


class LineWriter:
    """Writes points of one body as lines; remembers the names it has checked, which repeat from point to point."""

    def __init__(self, *, precision: Precision | None, now_ns: int) -> None:
        """Without a precision times are milliseconds, and in Telegraf's shape of the unit that their size shows."""
        self._precision = precision
        self._unit_ns = (precision or Precision.MS).value
        self._now_ns = now_ns
        self._measurements: dict[str, str] = {}
        self._tag_keys: dict[str, str] = {}
        self._field_keys: dict[str, str] = {}

    def lines(self, points: Iterable[AnyPoint]) -> bytes:
        """All points as lines. Raises PointError with the index of the first that a line cannot carry."""
        out = []
        for index, point in enumerate(points):
            try:
                out.append(self._line(point))
            except ValueError as exc:
                raise PointError(str(exc), index=index) from None
        return "".join(out).encode()

    def _line(self, point: AnyPoint) -> str:
        if point.name is not UNSET:
            return f"{self._telegraf(point)} {self._telegraf_time(point.timestamp)}\n"
        time = self._time(point.timestamp)
        if point.measurement is not UNSET or point.fields is not UNSET or point.tags is not UNSET:
            return f"{self._general(point)} {time}\n"
        return f"{_fleet(point)} {time}\n"

    def _telegraf(self, point: AnyPoint) -> str:
        """Telegraf leaves out empty tags when it writes line protocol; so they are left out here."""
        if point.measurement is not UNSET:
            raise ValueError("keys of two shapes: name does not go with measurement")
        tags = {key: value for key, value in (point.tags or {}).items() if key and value}
        return self._general(msgspec.structs.replace(point, measurement=point.name, name=UNSET, tags=tags))

    def _telegraf_time(self, timestamp: int | None) -> int:
        """Telegraf's `json_timestamp_units` is seconds by default, and not named in what it sends."""
        if timestamp is None or self._precision is not None:
            return self._time(timestamp)
        time = timestamp * TimeGuess.AUTO.unit_ns(timestamp)
        if not TIME_NS_MIN <= time <= TIME_NS_MAX:
            raise ValueError(_OUT_OF_RANGE)
        return time

    def _general(self, point: AnyPoint) -> str:
        if point.server_id is not UNSET or point.cpu is not UNSET or point.ram is not UNSET:
            raise ValueError(
                "keys of both shapes: serverId, cpu and ram do not go with measurement, tags and fields"
            )
        if point.measurement is UNSET:
            raise ValueError("missing: measurement")
        if not point.fields:
            raise ValueError("no fields")
        head = [self._checked(self._measurements, point.measurement, "measurement", IN_MEASUREMENT)]
        if point.tags:
            for key, value in point.tags.items():
                name = self._checked(self._tag_keys, key, "tag key", IN_TAG)
                head.append(f"{name}={name_text(value, 'tag value', IN_TAG)}")
        fields = [
            f"{self._checked(self._field_keys, key, 'field key', IN_FIELD_KEY)}={_field_value(value)}"
            for key, value in point.fields.items()
        ]
        check_runs(",".join(head), ",".join(fields))
        return f"{','.join(head)} {','.join(fields)}"

    def _time(self, timestamp: int | None) -> int:
        if timestamp is None:
            return self._now_ns
        time = timestamp * self._unit_ns
        if not TIME_NS_MIN <= time <= TIME_NS_MAX:
            raise ValueError(_OUT_OF_RANGE)
        return time

    def _checked(self, known: dict[str, str], name: str, what: str, place: Place) -> str:
        written = known.get(name)
        if written is None:
            written = known[name] = name_text(name, what, place)
        return written


def _fleet(point: AnyPoint) -> str:
    if point.server_id is UNSET or point.cpu is UNSET or point.ram is UNSET:
        values = {"serverId": point.server_id, "cpu": point.cpu, "ram": point.ram}
        raise ValueError(f"missing: {', '.join(key for key, value in values.items() if value is UNSET)}")
    server = name_text(point.server_id, "serverId", IN_TAG)
    return f"{MEASUREMENT},{SERVER_TAG}={server} cpu={_field_value(point.cpu)},ram={_field_value(point.ram)}"


def _field_value(value: float | int | str | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int):
        return repr(_exact_float(value))
    return string_text(value)
