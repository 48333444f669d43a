"""The reference decoder's corpus: what it takes is taken with the same points, what it refuses is refused.

The cases lie beside the repository and are not part of it; without them this file skips.
"""

from __future__ import annotations

import base64
import json
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

LINE_FEED = "a line feed inside a quoted string is not supported"
BACKSLASHES = "an even number of backslashes before a space, comma or '='"

# Every case that the reference decoder takes and this one does not. Nothing else differs.
#
# * LINE_FEED: lines are points here, and a body may be cut at any line feed; splitting, counting and bisecting
#   rest on it.
# * BACKSLASHES: the reference decoder reads `a\\ b` as a backslash and an escaped space. InfluxDB splits lines
#   with an escaped backslash there, after which the space ends the name; with a quote further on it swallows
#   the next sender's lines. VictoriaMetrics drops such a line and still answers 204.
KEPT_DIFFERENCES = {
    b'cpu value="4\n2"': LINE_FEED,
    b'cpu,host=serverA,region=us-east value=1.0,str="foo\nbar" 1000000000': LINE_FEED,
    b'u r="o\n"': LINE_FEED,
    rb"cpu,regions=\\ east value=1.0": BACKSLASHES,
    rb"cpu,regions=east\\  value=1.0": BACKSLASHES,
    rb"cpu,regions=eas\\ t value=1.0": BACKSLASHES,
    rb"u,s=\\,\,\t e=1": BACKSLASHES,
    rb"u,s=\\,\,\=ast e=1": BACKSLASHES,
}


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
        if case.valid and case.body not in KEPT_DIFFERENCES:
            lines = accept(case)
            assert decode(lines.data) == case.points, case.body
            assert lines.points == len(case.points), case.body
            taken += 1
    assert taken == 183


def test_what_the_reference_decoder_refuses_is_refused_with_line_and_column(
    cases: list[Case], accept: Any
) -> None:
    refused = 0
    for case in cases:
        if not case.valid:
            with pytest.raises(PointError) as caught:
                accept(case)
            assert caught.value.line is not None, case.body
            assert caught.value.column is not None, case.body
            refused += 1
    assert refused == 3_105


def test_every_kept_difference_is_in_the_corpus_and_refused_by_name(cases: list[Case], accept: Any) -> None:
    met = set()
    for case in cases:
        reason = KEPT_DIFFERENCES.get(case.body)
        if reason:
            met.add(case.body)
            assert case.valid
            with pytest.raises(PointError) as caught:
                accept(case)
            assert caught.value.reason.startswith(reason)
    assert met == set(KEPT_DIFFERENCES)


def test_what_was_made_canonical_is_taken_again_unchanged(cases: list[Case], accept: Any) -> None:
    tried = 0
    for case in cases:
        if case.valid and case.body not in KEPT_DIFFERENCES:
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
