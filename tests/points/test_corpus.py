"""The reference decoder's corpus: what it takes is taken with the same points, what it refuses is refused.

The cases lie beside the repository and are not part of it; without them this file skips.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.points.decoder import Point, decode, field
from wal_ingest.errors import PointError
from wal_ingest.points.engine import ENGINES, Engine
from wal_ingest.points.exact import parse_lines
from wal_ingest.points.line_protocol import LineProtocol, check_lines
from wal_ingest.points.lines import Lines, Precision

CORPUS = Path(__file__).parents[3] / "shared" / "corpus" / "line-protocol.json"
LINE_BYTES_MAX = 64 * 1024

# What the reference decoder refuses and both InfluxDBs take: control characters in names and comments.
TAKEN_BY_INFLUXDB = re.compile(rb"[\x00-\x09\x0b\x0c\x0e-\x1f\x7f]")


class Case:
    """One case of the corpus."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.body = base64.b64decode(raw["body_base64"])
        self.precision = Precision[raw["precision"].upper()]
        self.now_ns: int = raw["default_time_ns"]
        self.valid: bool = raw["valid"]
        self.points = [_expected(point) for point in raw["points"]] if self.valid else []


def _expected(raw: dict[str, Any]) -> Point:
    tags = tuple((tag["key"], tag["value"]) for tag in raw["tags"])
    fields = tuple(field(f["key"], *next(iter(f["value"].items()))) for f in raw["fields"])
    return Point(raw["name"], tags, fields, raw["time"])


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    if not CORPUS.exists():
        pytest.skip(f"the corpus is not there: {CORPUS}")
    return [Case(raw) for raw in json.loads(CORPUS.read_bytes())["cases"]]


@pytest.fixture(params=[*ENGINES, None], ids=lambda engine: engine.name if engine else "exact")
def accept(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Each of the two engines with the exact parser behind it, and the exact parser alone."""
    engine: Engine | None = request.param

    def exact(case: Case) -> Lines:
        check_lines(case.body, LINE_BYTES_MAX)
        return parse_lines(case.body, unit_ns=case.precision.value, now_ns=case.now_ns)

    if engine is None:
        yield exact
    else:
        acceptor = LineProtocol(engine)
        yield lambda case: acceptor.accept(
            case.body, precision=case.precision, now_ns=case.now_ns, line_bytes_max=LINE_BYTES_MAX
        )


def test_what_the_reference_decoder_takes_is_taken_with_the_same_points(
    cases: list[Case], accept: Any
) -> None:
    taken = 0
    for case in cases:
        if case.valid:
            lines = accept(case)
            assert decode(lines.data) == case.points, case.body
            assert lines.points == len(case.points), case.body
            taken += 1
    assert taken == 192


def test_what_the_reference_decoder_refuses_is_refused_with_line_and_column(
    cases: list[Case], accept: Any
) -> None:
    refused = taken = 0
    for case in cases:
        if case.valid:
            continue
        try:
            lines = accept(case)
        except PointError as exc:
            refused += exc.line is not None and exc.column is not None
        else:
            assert TAKEN_BY_INFLUXDB.search(case.body), (case.body, lines)
            taken += 1
    assert (refused, taken) == (3_105 - 16, 16)


def test_what_was_made_canonical_is_taken_again_unchanged(cases: list[Case], accept: Any) -> None:
    tried = 0
    for case in cases:
        if case.valid:
            lines = accept(case)
            again = Case(
                {
                    "body_base64": base64.b64encode(lines.data),
                    "precision": "ns",
                    "default_time_ns": 7,
                    "valid": False,
                }
            )
            assert accept(again) == lines
            tried += 1
    assert tried
