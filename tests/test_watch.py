"""What the node says of itself: the documents of the status page, the ages of what waits, the last errors."""

from __future__ import annotations

import json
import math
import re
import urllib.error
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.rigs.processes import wait_until
from tests.rigs.service import Service
from tests.wal.factories import Clock, new_entry, open_store, settings
from wal_ingest.acts import Peer, act_of
from wal_ingest.errors import StorageFailed
from wal_ingest.flusher.status import Progress, SinkState, SinkStatus
from wal_ingest.http import ingest
from wal_ingest.metrics import PREFIX, TABLE, Kind, Metrics
from wal_ingest.service.numbers import Numbers
from wal_ingest.service.watch import ERRORS_MAX, LastErrors, Watch, accepted_behind
from wal_ingest.settings import Settings
from wal_ingest.wal.cursor import Cursor, DeadLetter
from wal_ingest.wal.entry import Destination
from wal_ingest.wal.store import Store
from wal_ingest.wal.writer import Writer

PAGE = (Path(ingest.__file__).parent / "API.md").read_text()
S = 10**9
LINES = b"".join(b"cpu,host=a%d f=1 %d\n" % (number, number) for number in range(1_000))


def example(document: str) -> dict[str, Any]:
    """The document as API.md shows it."""
    found = re.search(rf"## GET {document}\n.*?```json\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    shown: dict[str, Any] = json.loads(found[1])
    return shown


def shape(value: Any) -> Any:
    """The names in a document, however deep, without its values."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [shape(value[0])]
    return None


class Node:
    """A store, its writer, and sinks of which only the cursors are known."""

    def __init__(self, tmp_path: Path) -> None:
        self.clock = Clock()
        self.store: Store = open_store(tmp_path, self.clock)
        self.metrics = Metrics()
        self.writer = Writer(self.store.wal, settings())
        self.progress = Progress(0)
        self.cursor = Cursor()
        self.at_s = 0.0
        self.disk_is_gone = False
        self.watch = Watch(
            self.store,
            self.writer,
            self.statuses,
            self.metrics,
            settings(),
            now_ns=self.clock,
            monotonic_s=lambda: self.at_s,
            free_bytes=lambda _path: self.free_bytes(),
        )

    def free_bytes(self) -> int:
        """A disk on which nobody else writes."""
        if self.disk_is_gone:
            raise OSError("no such file system")
        return 10**15

    def statuses(self) -> Sequence[SinkStatus]:
        return [self.progress.status("influxdb", required=True, cursor=self.cursor)]

    async def look(self, *, s: float = 1.0) -> None:
        """Lets so many seconds pass, and looks."""
        self.at_s += s
        self.clock.advance_s(s)
        await self.watch.look()

    def append(self, number: int, points: int = 1) -> None:
        """Commits one entry, accepted now."""
        self.store.wal.commit([[new_entry(number, points=points, accepted_ns=self.clock())]])

    def damage(self) -> None:
        """Overwrites everything but the first pages of the first segment's file."""
        path = self.store.wal.segments()[0].path
        with path.open("r+b") as file:
            file.seek(8192)
            file.write(b"\xff" * (path.stat().st_size - 8192))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node over an empty directory."""
    node = Node(tmp_path)
    yield node
    node.store.close()


# -- the age of what waits ------------------------------------------------------------------------------


async def test_the_lag_is_the_age_of_the_oldest_entry_that_waits(node: Node) -> None:
    await node.look()
    assert node.watch.lag_s == {"influxdb": 0.0}
    node.append(1)
    await node.look(s=3)
    node.append(2)
    await node.look(s=4)
    assert node.watch.lag_s == {"influxdb": 7.0}
    node.cursor = Cursor(seq=1, points=1, confirmed=1)
    await node.look(s=1)
    assert node.watch.lag_s == {"influxdb": 5.0}
    node.cursor = Cursor(seq=2, points=2, confirmed=2)
    await node.look()
    assert node.watch.lag_s == {"influxdb": 0.0}


async def test_a_clock_that_was_set_back_makes_nothing_younger_than_now(node: Node) -> None:
    node.append(1)
    await node.look(s=-100)
    assert node.watch.lag_s == {"influxdb": 0.0}


async def test_what_waits_is_read_once_as_long_as_the_cursor_stands(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.append(1)
    await node.look()
    monkeypatch.setattr("wal_ingest.service.watch.read_entry", lambda *_: pytest.fail("read again"))
    await node.look()
    assert node.watch.lag_s == {"influxdb": 2.0}


async def test_a_damaged_segment_does_not_keep_the_watch_from_looking(node: Node) -> None:
    node.clock.advance_s(10)
    node.append(1, points=5)
    node.damage()
    await node.look()
    assert node.watch.lag_s == {"influxdb": 11.0}, "as old as its segment: early, never late"
    assert node.watch.history.catch_up_s("influxdb") is None


def test_behind_the_last_entry_nothing_is_old(node: Node) -> None:
    assert accepted_behind(node.store.wal, 0, 77) == 77


async def test_a_disk_that_does_not_answer_keeps_the_value_it_had(node: Node) -> None:
    node.disk_is_gone = True
    await node.look()
    assert node.watch.disk_free_bytes == 10**15


# -- when it will be full -------------------------------------------------------------------------------


async def test_confirmed_segments_do_not_bring_the_end_nearer(node: Node) -> None:
    for second in range(1, 60):
        node.append(second, points=1_000)
        node.cursor = Cursor(seq=second, points=second * 1_000)
        await node.look()
    assert node.store.wal.bytes > 20_000
    assert node.watch.history.full_in_s() is None


async def test_what_waits_brings_the_end_nearer(node: Node) -> None:
    for second in range(1, 60):
        node.store.wal.commit([[new_entry(second, points=1_000, filler=40, accepted_ns=5)] * 1_000])
        await node.look()
    left = node.watch.history.full_in_s()
    assert left is not None
    room = settings().wal_bytes_max - node.store.wal.bytes
    assert left == pytest.approx(room / (node.store.wal.bytes / 59), rel=0.2)


# -- the last errors ------------------------------------------------------------------------------------


async def test_the_last_errors_are_those_of_sinks_damage_and_refusals(node: Node) -> None:
    node.progress.error("HTTP 401: unauthorized", node.clock() + 1)
    node.watch.failed_request("a request to /write failed: KeyError: 'x'")
    node.store.wal.commit([[new_entry(1)]])
    node.store.wal.seal()
    node.store.wal.set_aside(node.store.wal.segments()[0].path, "a page is torn")
    node.writer._full = "the WAL has 5 bytes, its limit is 4"
    await node.look()
    node.writer._full = "the WAL has 6 bytes, its limit is 4"
    await node.look()
    told = {seen.source: seen.message for seen in node.watch.errors.listed()}
    assert len(node.watch.errors.listed()) == 4
    assert told["influxdb"] == "HTTP 401: unauthorized"
    assert told["http"] == "a request to /write failed: KeyError: 'x'"
    messages = [seen.message for seen in node.watch.errors.listed() if seen.source == "wal"]
    assert any("a page is torn" in message for message in messages)
    assert "refusing: the WAL has 5 bytes, its limit is 4" in messages
    node.writer._full = None
    await node.look()
    node.writer._full = "full again"
    await node.look()
    assert node.watch.errors.listed()[0].message == "refusing: full again"


def test_errors_are_told_once_and_the_newest_first() -> None:
    errors = LastErrors()
    for number in range(ERRORS_MAX + 5):
        errors.note(number, "influxdb", f"error {number}")
    errors.note(100, "influxdb", "error 10")
    listed = errors.listed()
    assert len(listed) == ERRORS_MAX
    assert [seen.message for seen in listed[:2]] == ["error 10", f"error {ERRORS_MAX + 4}"]


def test_dead_letters_that_cannot_be_counted_leave_the_count_as_it_was(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing() -> None:
        raise StorageFailed(Path("state.lmdb"), "no")

    monkeypatch.setattr(node.store.state, "letter_groups", failing)
    assert node.watch._read_letters() == ()


def numbers_of(node: Node, *, reasons: Sequence[str] = ()) -> Numbers:
    """What a node says of itself, on the test's clocks."""
    return Numbers(
        node.store,
        node.writer,
        Settings(),
        node.watch,
        node.statuses,
        not_ready=lambda: reasons,
        streams=lambda: 0,
        now=lambda: datetime.fromtimestamp(node.clock() / S, UTC),
        monotonic_s=lambda: node.at_s,
        started=datetime.fromtimestamp(0, UTC),
    )


async def test_a_sink_that_takes_nothing_now_has_no_estimate_of_when_it_has_caught_up(node: Node) -> None:
    numbers = numbers_of(node)
    await node.look()
    for number in range(1, 9):
        node.append(number, points=10)
        await node.look()
    node.progress.enter(SinkState.DELIVERING, 0)
    assert numbers.status()["sinks"][0]["catch_up_s"] is not None  # type: ignore[index]
    for state in (SinkState.RETRYING, SinkState.HOLDING, SinkState.FAILED, SinkState.PAUSED):
        node.progress.enter(state, 0)
        assert numbers.status()["sinks"][0]["catch_up_s"] is None, state  # type: ignore[index]
        assert numbers.metrics()["sink_catch_up_seconds"] == {("influxdb",): math.inf}


async def test_points_that_were_given_up_turn_the_verdict_for_a_day_and_stay_in_the_account(
    node: Node,
) -> None:
    numbers = numbers_of(node)
    node.append(1, points=5)
    await node.look()
    node.cursor = node.cursor.expired_to(seq=1, points_after=5)
    await node.look()
    told: Any = numbers.status()
    assert told["verdict"]["level"] == "attention"
    node.clock.advance_s(90_000)
    told = numbers.status()
    assert told["verdict"]["level"] == "good"
    assert (
        told["verdict"]["sentence"] == "Taking points; 5 points of influxdb given up; the rest is delivered"
    )
    node.watch.given_up_ns = node.watch._given_up = 0
    await node.look()
    told = numbers.status()
    assert told["verdict"]["level"] == "attention", "after a restart nothing is known of when it was"


async def test_refused_requests_turn_the_verdict_until_they_are_five_minutes_old(node: Node) -> None:
    numbers = numbers_of(node)
    await node.look()
    for _ in range(50):
        node.watch.requests.refused("/metrics", 401)
    told: Any = numbers.status()
    assert told["verdict"]["level"] == "bad"
    assert told["verdict"]["sentence"].startswith("REFUSING ALL 50 requests")
    for _ in range(32):
        await node.look(s=10)
    told = numbers.status()
    assert told["verdict"] == {
        "level": "good",
        "sentence": "Taking points; everything delivered",
        "remedies": [],
        "key": "",
    }


async def test_what_operators_do_is_among_the_events_and_not_among_the_errors(node: Node) -> None:
    node.progress.error("HTTP 401: unauthorized", node.clock())
    await node.look()
    node.clock.advance_s(1)
    node.watch.operated(act_of("sink.skip", Peer(0, "root", 7), {"sink": "influxdb"}, {"expired_points": 12}))
    told: Any = numbers_of(node).status()
    assert [(event["kind"], event["message"]) for event in told["events"]] == [
        ("operator", "sink skip (sink=influxdb) by root (uid 0, pid 7): expired_points=12"),
        ("error", "HTTP 401: unauthorized"),
    ]
    assert [error["message"] for error in told["errors"]] == ["HTTP 401: unauthorized"]


async def test_dead_letters_are_in_the_status_by_reason(node: Node) -> None:
    letter = DeadLetter("influxdb", 1, b"m v=1 1\n", "HTTP 422: too old", 422, 5 * S, Destination())
    node.append(1)
    node.store.commit_cursor("influxdb", Cursor(seq=1, points=1, parked=1), [letter])
    node.watch.letters = node.watch._read_letters()
    numbers = numbers_of(node, reasons=["the WAL is full"])
    told = numbers.status()
    assert told["dead_letters"] == [
        {
            "sink": "influxdb",
            "reason": "HTTP 422: too old",
            "points": 1,
            "last_at": "1970-01-01T00:00:05+00:00",
        }
    ]
    assert shape(told["dead_letters"]) == shape(example("/status.json")["dead_letters"])
    assert (told["ready"], told["reasons"]) == (False, ["the WAL is full"])
    assert numbers.history()["points_per_s"] == []


# -- a real node under load -----------------------------------------------------------------------------

# Metrics that must have counted something on a node that took and delivered points.
BUSY = {
    "ingest_points_total",
    "ingest_bytes_total",
    "append_seconds_count",
    "commit_seconds_sum",
    "commit_entries_sum",
    "commits_total",
    "accepted_points_total",
    "wal_bytes",
    "wal_bytes_max",
    "wal_segments",
    "disk_free_bytes",
    "sink_confirmed_points_total",
    "sink_write_seconds_count",
    "sink_state_since_seconds",
    "build_info",
}


def scraped(service: Service) -> dict[str, float]:
    """Every series of ours, by its name and labels; an `le` among these only at +Inf."""
    return {
        "/".join([sample.name.removeprefix(PREFIX), *sorted(sample.labels.values())]): sample.value
        for family in text_string_to_metric_families(service.get("/metrics"))
        for sample in family.samples
        if sample.name.startswith(PREFIX) and sample.labels.get("le", "+Inf") == "+Inf"
    }


def test_a_node_under_load_tells_of_itself_in_every_metric_and_document(tmp_path: Path) -> None:
    sinks = {"archive.enabled": "on", "influxdb.url": "http://127.0.0.1:9", "influxdb.bucket": "b"}
    with Service(tmp_path / "data", logs=tmp_path, settings=sinks) as service:
        for _ in range(20):
            service.post("/metrics", LINES, {"Content-Type": "text/plain"})
        for route, bad in (
            ("/api/v2/write", b"no line\n"),
            ("/write", b"one,good=1 f=1 1763800000000000000\nno line\n"),
        ):
            with pytest.raises(urllib.error.HTTPError) as refused:
                service.post(route, bad, {})
            refused.value.close()
        told = wait_until(
            lambda: (
                (found := json.loads(service.get("/status.json")))["rates"]["points_per_s"] > 0
                and {sink["name"]: sink for sink in found["sinks"]}["archive"]["waiting_points"] == 0
                and found["errors"]
                and found
            ),
            "the page knows of points that came in, of a sink that has them and of one that is away",
        )
        numbers = scraped(service)
        history = wait_until(
            lambda: (found := json.loads(service.get("/history.json")))["points_per_s"] and found,
            "the first step of the history is over",
            s_max=20,
        )
    expected = {
        declared.exposed_name.removeprefix(PREFIX) for declared in TABLE if declared.kind != Kind.HISTOGRAM
    }
    assert expected <= {name.split("/")[0] for name in numbers}
    for name in BUSY:
        assert max(value for key, value in numbers.items() if key.split("/")[0] == name) > 0, name
    assert numbers["ingest_requests_total//metrics/accepted"] == 20
    assert numbers["commit_entries_sum"] == 21
    assert numbers["accepted_points_total"] == numbers["sink_waiting_points/influxdb"] == 20_001
    assert numbers["sink_retried_writes_total/influxdb"] + numbers["sink_write_seconds_count/influxdb"] > 0
    assert 0 < numbers["sink_lag_seconds/influxdb"] < 60
    assert numbers["sink_lag_seconds/influxdb"] == numbers["wal_oldest_waiting_seconds"]
    assert numbers["wal_full_in_seconds"] == math.inf
    assert numbers["sink_catch_up_seconds/archive"] == 0
    shown = example("/status.json")
    assert shape(told) == shape(shown | {"dead_letters": []})
    assert told["append"]["p99_ms"] == told["commit"]["p99_ms"], "the old name, kept"
    assert {sink["name"]: sink["catch_up_s"] for sink in told["sinks"]} == {"influxdb": None, "archive": 0.0}
    assert told["wal"]["points_accepted"] == 20_001
    assert told["commit"]["p99_ms"] >= told["commit"]["p50_ms"] > 0
    assert told["errors"][0]["source"] == "influxdb"
    assert shape(history) == shape(example("/history.json"))
    lengths = {len(history[name]) for name in ("points_per_s", "wal_bytes", "append_p99_ms")}
    lengths |= {len(values) for sink in history["sinks"].values() for values in sink.values()}
    assert len(lengths) == 1
    assert datetime.fromisoformat(history["end"]) <= datetime.now(UTC)
