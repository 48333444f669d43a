"""What a fleet sends: points that are all different and can be made again from a plan. Pure.

A request is made from (plan, client, number) alone, so a test need not keep the points it sent: it keeps
which requests were answered, and makes their points again when it reads the database.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

MS = 1_000_000  # nanoseconds

Value = float | int | str | bool


@dataclass(frozen=True, slots=True)
class Point:
    """`time_ns` is None for a point that is sent without a time."""

    measurement: str
    tags: tuple[tuple[str, str], ...]
    fields: tuple[tuple[str, Value], ...]
    time_ns: int | None

    def line(self, *, unit_ns: int = 1) -> str:
        """Line protocol, without the newline. Names and strings hold nothing that needs an escape."""
        tags = "".join(f",{key}={value}" for key, value in self.tags)
        fields = ",".join(f"{key}={_line_value(value)}" for key, value in self.fields)
        time = "" if self.time_ns is None else f" {self.time_ns // unit_ns}"
        return f"{self.measurement}{tags} {fields}{time}"


@dataclass(frozen=True, slots=True)
class Shape:
    """One way to send points: where to, in which form, compressed or not, with times or without."""

    form: str
    gzip: bool
    timed: bool

    @property
    def label(self) -> str:
        return f"{self.form}-{'gzip' if self.gzip else 'plain'}-{'timed' if self.timed else 'untimed'}"


FORMS = ("lines", "v2", "v1", "fleet", "general", "ndjson")
EVERY_SHAPE = tuple(
    Shape(form, packed, timed) for form in FORMS for packed in (False, True) for timed in (True, False)
)
LINES = Shape("lines", gzip=False, timed=True)


@dataclass(frozen=True, slots=True)
class Plan:
    """What one run of a load sends.

    `run` is its measurement (a test takes a name of its own), `base_ns` the time of its first point, a
    whole millisecond. `points` is how many a request carries; with `vary` a request carries 1 … `points`.
    `rich` gives the points of lines and general JSON a string, a boolean and an integer as well.
    """

    run: str
    base_ns: int
    points: int
    shapes: Sequence[Shape] = (LINES,)
    seed: int = 0
    vary: bool = False
    rich: bool = False

    @property
    def measurements(self) -> tuple[str, ...]:
        """Every measurement of a rich run. JSON has one of its own: it knows no integers apart from floats."""
        return (self.run, f"{self.run}_json", "server_metrics")

    @property
    def matches(self) -> tuple[str, str]:
        """What selects every series of this run in VictoriaMetrics."""
        return (
            f'{{__name__=~"{self.run}_.*"}}',
            f'{{__name__=~"server_metrics_.*",server_id=~"{self.run}-.*"}}',
        )


@dataclass(frozen=True, slots=True)
class Request:
    path: str
    headers: dict[str, str]
    body: bytes
    shape: Shape
    points: list[Point]


def make_request(plan: Plan, client: int, number: int) -> Request:
    """The request that `client` sends as its `number`th; the same for the same arguments."""
    return request_of(plan.shapes[number % len(plan.shapes)], make_points(plan, client, number))


def request_of(shape: Shape, points: list[Point]) -> Request:
    """These points in this shape."""
    path, content_type, encode = _FORMS[shape.form]
    body = encode(points)
    headers = {"Content-Type": content_type}
    if shape.gzip:
        body = gzip.compress(body, 1)
        headers["Content-Encoding"] = "gzip"
    return Request(path, headers, body, shape, points)


def make_points(plan: Plan, client: int, number: int) -> list[Point]:
    count = plan.points
    if plan.vary:
        count = Random(f"{plan.seed}/{client}/{number}").randint(1, plan.points)
    shape = plan.shapes[number % len(plan.shapes)]
    return [
        _point(plan, shape, client, number, number * plan.points + index, index) for index in range(count)
    ]


def _point(plan: Plan, shape: Shape, client: int, number: int, unique: int, index: int) -> Point:
    """`unique` numbers the points of a client: it gives the point its millisecond and its value.

    Values are eighths, which every decimal and binary form keeps exactly. A point without a time gets a
    series of its own, since the time that the server gives it cannot keep it apart.
    """
    value = unique / 8
    time_ns = plan.base_ns + unique * MS if shape.timed else None
    own = () if shape.timed else (("i", str(index)), ("r", str(number)))
    if shape.form == "fleet":
        # Its only tag is the server, so the run and all that keeps series apart goes in there.
        server = "-".join([plan.run, str(client), shape.label, *(part for _, part in own)])
        return Point(
            "server_metrics", (("server_id", server),), (("cpu", value), ("ram", value + 0.5)), time_ns
        )
    fields: tuple[tuple[str, Value], ...] = (("value", value),)
    if plan.rich:
        # JSON's numbers become floats, which are exact up to 2**53; line protocol's integers go beyond that.
        whole = unique if shape.form in ("general", "ndjson") else unique + 2**53
        fields += (("text", f"say {unique}"), ("flag", unique % 2 == 0), ("whole", whole))
    tags = (("client", str(client)), *own, ("shape", shape.label))
    if time_ns is not None and shape.form in ("lines", "v2"):
        time_ns += (unique * 7919) % MS  # the forms that carry nanoseconds
    measurement = f"{plan.run}_json" if plan.rich and shape.form in ("general", "ndjson") else plan.run
    return Point(measurement, tags, fields, time_ns)


def _line_value(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    return f"{value}i" if isinstance(value, int) else repr(value)


def _lines(points: Sequence[Point]) -> bytes:
    return "".join(point.line() + "\n" for point in points).encode()


def _lines_ms(points: Sequence[Point]) -> bytes:
    return "".join(point.line(unit_ns=MS) + "\n" for point in points).encode()


def _fleet(points: Sequence[Point]) -> bytes:
    return json.dumps([_fleet_object(point) for point in points]).encode()


def _fleet_object(point: Point) -> dict[str, object]:
    made: dict[str, object] = {"serverId": point.tags[0][1], **dict(point.fields)}
    if point.time_ns is not None:
        made["timestamp"] = point.time_ns // MS
    return made


def _general_object(point: Point) -> dict[str, object]:
    made: dict[str, object] = {
        "measurement": point.measurement,
        "tags": dict(point.tags),
        "fields": dict(point.fields),
    }
    if point.time_ns is not None:
        made["timestamp"] = point.time_ns // MS
    return made


def _general(points: Sequence[Point]) -> bytes:
    return json.dumps([_general_object(point) for point in points]).encode()


def _ndjson(points: Sequence[Point]) -> bytes:
    return b"".join(json.dumps(_general_object(point)).encode() + b"\n" for point in points)


_TEXT = "text/plain; charset=utf-8"
_FORMS: dict[str, tuple[str, str, Callable[[Sequence[Point]], bytes]]] = {
    "lines": ("/metrics", _TEXT, _lines),
    "v2": ("/api/v2/write?org=any&bucket=any&precision=ns", _TEXT, _lines),
    "v1": ("/write?db=any&precision=ms", _TEXT, _lines_ms),
    "fleet": ("/metrics", "application/json", _fleet),
    "general": ("/metrics", "application/json", _general),
    "ndjson": ("/metrics", "application/x-ndjson", _ndjson),
}
