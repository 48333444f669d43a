"""What the clients send: good points in every form and encoding, poisoned ones, and broken bodies. Pure.

A request is made from (plan, client, number, kind) alone, so the account makes its points again.

* A *poisoned* request is valid and holds points that the fault proxy refuses as a database would (a tag marks them).
* A *broken* request holds good lines and one that is no line protocol: all of it must be refused, but for `/write`:
  there the good lines are stored and the answer is 400, as InfluxDB 1 does it.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from random import Random

import zstandard

from tests.rigs.fleet import EVERY_SHAPE, Plan, Point, Request, Shape, make_points, request_of

POISON = ("poison", "yes")
_BROKEN_LINE = b"no_field_here,client=x\n"

_LINE_FORMS = ("lines", "v2", "v1")
# The encoding is drawn here, so the shapes say nothing of it.
SHAPES = tuple(shape for shape in EVERY_SHAPE if not shape.gzip)

_ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda body: gzip.compress(body, 1),
    "deflate": lambda body: zlib.compress(body, 1),
    "zstd": lambda body: zstandard.ZstdCompressor(level=1).compress(body),
}


class Kind(Enum):
    """What a request is for."""

    GOOD = "good"
    POISONED = "poisoned"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Sent:
    """One request and what was heard of it in the end. `status` is 0 when no try was answered.

    `sent_ns` and `heard_ns` are the earliest and the latest time that the server's clock can have shown. `points`
    and `seq` are the answer's own, None where it carries none. `tries` counts how often it was sent.
    """

    plan: Plan
    client: int
    number: int
    kind: Kind
    status: int
    sent_ns: int
    heard_ns: int
    tries: int = 1
    points: int | None = None
    seq: int | None = None

    @property
    def acked(self) -> bool:
        return 200 <= self.status < 300

    @property
    def partial(self) -> bool:
        """Answered that the good lines of a broken request are stored: so `/write` does it, as InfluxDB 1."""
        broken_v1 = self.kind is Kind.BROKEN and shape_of(self.plan, self.number).form == "v1"
        return broken_v1 and self.status == 400

    @property
    def refused(self) -> bool:
        """Told for good that nothing was stored."""
        return 400 <= self.status < 500 and self.status not in (408, 429)


def shape_of(plan: Plan, number: int) -> Shape:
    """The shape of a client's `number`th request."""
    return plan.shapes[number % len(plan.shapes)]


def kind_of(plan: Plan, client: int, number: int, *, poison: float, broken: float) -> Kind:
    """What the request is for; `poison` and `broken` are shares of all requests whose form can carry it."""
    drawn = Random(f"kind/{plan.seed}/{client}/{number}").random()
    form = shape_of(plan, number).form
    if form != "fleet" and drawn < poison:
        return Kind.POISONED
    return Kind.BROKEN if form in _LINE_FORMS and drawn > 1 - broken else Kind.GOOD


def points_of(plan: Plan, client: int, number: int, kind: Kind) -> list[Point]:
    """The points of a request; of a broken one the good lines."""
    points = make_points(plan, client, number)
    if kind is Kind.POISONED:
        dice = Random(f"poison/{plan.seed}/{client}/{number}")
        for index in dice.sample(range(len(points)), min(len(points), dice.randint(1, 3))):
            points[index] = replace(points[index], tags=(*points[index].tags, POISON))
    return points


def is_poisoned(point: Point) -> bool:
    """Whether the database refuses this point."""
    return POISON in point.tags


def make_request(plan: Plan, client: int, number: int, kind: Kind) -> Request:
    """The request as it goes over the wire, in an encoding of its own."""
    dice = Random(f"wire/{plan.seed}/{client}/{number}")
    made = request_of(shape_of(plan, number), points_of(plan, client, number, kind))
    body, headers = made.body, made.headers
    if kind is Kind.BROKEN:
        body = body + _BROKEN_LINE if dice.random() < 0.5 else _BROKEN_LINE + body
    encoding = dice.choice(["identity", *_ENCODINGS])
    if encoding != "identity":
        body = _ENCODINGS[encoding](body)
        headers["Content-Encoding"] = encoding
    return replace(made, body=body, headers=headers)
