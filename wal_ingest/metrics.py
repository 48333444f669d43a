"""The metrics that `GET /metrics` shows, as one declared table.

Most numbers are read when somebody asks, because the node keeps them anyway. Those that only the act itself knows
(how long, how many at once) are measured there, once per request, per commit or per write, never per point.

The rooms do not know this module: each takes a small observer of its own, and `Metrics` has one for each of them.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from wal_ingest.history import Durations


class Kind(enum.Enum):
    """How a metric behaves; the value is Prometheus' word for it."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Declared:
    """One metric: its name without prefix and suffix, its kind, what it says (with the unit), labels, buckets.

    `measured` says that it is measured at the act; the others are read at the scrape.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    measured: bool = False

    @property
    def exposed_name(self) -> str:
        """The name as a scrape shows it; a histogram's series have `_bucket`, `_sum` and `_count` behind it."""
        return PREFIX + self.name + ("_total" if self.kind is Kind.COUNTER else "")


PREFIX = "wal_ingest_"
ROUTES = ("/metrics", "/api/v2/write", "/write", "/api/v3/write_lp", "/stream", "unparsed", "other")
RESULTS = ("accepted", "partial", "invalid", "unauthorized", "too_large", "unavailable", "failed")
# The values of the labels `reason` and `oddity`; a test compares them with the front door's own.
REASONS = (
    "malformed",
    "too_long",
    "time",
    "request",
    "unauthorized",
    "media_type",
    "method",
    "number",
    "too_large",
    "too_slow",
    "unavailable",
    "failed",
)
ODDITIES = ("time_past", "time_future", "not_utf8")

_SINK = ("sink",)
_COUNTER, _GAUGE, _HISTOGRAM = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM
_APPEND_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20)
_COMMIT_S = (0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20)
_WRITE_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ENTRIES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)

TABLE = (
    Declared(
        "ingest_requests",
        _COUNTER,
        "Write requests and frames of streams answered; result is accepted, partial (good lines stored, others "
        "refused), invalid (4xx), unauthorized (401), too_large (413), unavailable (503) or failed (500); "
        "route unparsed is of requests that are not valid HTTP/1.1, other of refused web pages.",
        ("route", "result"),
        measured=True,
    ),
    Declared("streams", _GAUGE, "WebSocket streams that are open."),
    Declared("streams_max", _GAUGE, "WebSocket streams that may be open (server.streams_max)."),
    Declared("ingest_points", _COUNTER, "Points of accepted requests and frames.", ("route",), measured=True),
    Declared(
        "ingest_bytes",
        _COUNTER,
        "Bytes of accepted bodies and frames as they came, compressed or not.",
        ("route",),
        measured=True,
    ),
    Declared(
        "ingest_refusals",
        _COUNTER,
        "Requests and frames refused as a whole, by reason.",
        ("route", "reason"),
        measured=True,
    ),
    Declared(
        "ingest_refused_lines",
        _COUNTER,
        "Lines left out of requests whose other lines were stored, by reason.",
        ("route", "reason"),
        measured=True,
    ),
    Declared(
        "ingest_odd_points",
        _COUNTER,
        "Points accepted although odd: time_past (before 1990), time_future (more than a day ahead), not_utf8 (read as "
        "Windows-1252). Times are sampled: of a request in which none is found, none is counted.",
        ("route", "oddity"),
        measured=True,
    ),
    Declared(
        "append_seconds",
        _HISTOGRAM,
        "Seconds from an append to its entries being durable, as the request waits for it.",
        buckets=_APPEND_S,
        measured=True,
    ),
    Declared(
        "commit_seconds",
        _HISTOGRAM,
        "Seconds of one commit: compressing, pages, both syncs.",
        buckets=_COMMIT_S,
        measured=True,
    ),
    Declared(
        "commit_entries", _HISTOGRAM, "Entries that shared one commit.", buckets=_ENTRIES, measured=True
    ),
    Declared("commits", _COUNTER, "Commits, each one durable transaction.", measured=True),
    Declared("accepted_points", _COUNTER, "Points of all entries ever committed."),
    Declared("wal_bytes", _GAUGE, "Bytes that the WAL's segments take."),
    Declared("wal_bytes_max", _GAUGE, "Bytes that the WAL may take (wal.wal_bytes_max)."),
    Declared("wal_segments", _GAUGE, "Segments that are kept, confirmed ones among them."),
    Declared("wal_refusing", _GAUGE, "1 while nothing new is taken (see /readyz for why), else 0."),
    Declared("wal_damaged_files", _GAUGE, "Files set aside as damaged since the start."),
    Declared(
        "wal_oldest_waiting_seconds",
        _GAUGE,
        "Age of the oldest entry that a required sink has yet to confirm, in seconds; 0 when there is none.",
    ),
    Declared(
        "wal_full_in_seconds",
        _GAUGE,
        "Seconds until the WAL has no room left under its limit or on its disk, at its own growth over the last "
        "minute; 0 when it is full, +Inf when it is not growing.",
    ),
    Declared("disk_free_bytes", _GAUGE, "Bytes free on the WAL's disk."),
    Declared("disk_free_bytes_min", _GAUGE, "Bytes that must stay free there (wal.free_disk_bytes_min)."),
    Declared(
        "disk_full_in_seconds",
        _GAUGE,
        "Seconds until the WAL's disk reaches that floor, at the trend of the last minute, whatever fills it; "
        "0 when it is reached, +Inf when it is not filling.",
    ),
    Declared("dead_letters_bytes", _GAUGE, "Bytes that dead letters take on disk, those of all sinks."),
    Declared(
        "dead_letters_bytes_max", _GAUGE, "Bytes that they may take there (flusher.dead_letters_bytes_max)."
    ),
    Declared(
        "sink_accepted_points",
        _COUNTER,
        "Points accepted since the sink began: the sum of its confirmed, waiting and given up points and its dead "
        "letters.",
        _SINK,
    ),
    Declared("sink_confirmed_points", _COUNTER, "Points that the sink has confirmed, durably noted.", _SINK),
    Declared(
        "sink_parked_points",
        _COUNTER,
        "Points parked since the start of the process, as the sink refused them for good; "
        "wal_ingest_sink_dead_letters has those that are kept.",
        _SINK,
    ),
    Declared("sink_dead_letters", _GAUGE, "Dead letters that are kept: neither retried nor dropped.", _SINK),
    Declared(
        "sink_letters_without_room",
        _GAUGE,
        "1 while delivery holds because dead letters have no room, else 0.",
        _SINK,
    ),
    Declared(
        "sink_skipped_points",
        _COUNTER,
        "Points that could not be read in damaged segments, or are in no file.",
        _SINK,
    ),
    Declared("sink_expired_points", _COUNTER, "Points that an operator decided to skip for the sink.", _SINK),
    Declared(
        "sink_given_up_points",
        _COUNTER,
        "Points that the sink will never get: the sum of its skipped and its expired points.",
        _SINK,
    ),
    Declared("sink_waiting_points", _GAUGE, "Points that the sink has yet to confirm.", _SINK),
    Declared(
        "sink_lag_seconds",
        _GAUGE,
        "Age of the oldest entry that the sink has yet to confirm, in seconds; 0 when there is none.",
        _SINK,
    ),
    Declared(
        "sink_catch_up_seconds",
        _GAUGE,
        "Seconds until nothing waits for the sink, at the rates of the "
        "last 10 s; 0 when nothing waits, +Inf when it falls behind or does not deliver.",
        _SINK,
    ),
    Declared(
        "sink_unaccounted_points", _GAUGE, "Points that went none of the known ways; 0, or a bug.", _SINK
    ),
    Declared(
        "sink_write_seconds",
        _HISTOGRAM,
        "Seconds of one write to the sink, whatever its outcome.",
        _SINK,
        _WRITE_S,
        measured=True,
    ),
    Declared(
        "sink_rejected_writes",
        _COUNTER,
        "Writes that the sink refused for their points, since the start.",
        _SINK,
    ),
    Declared("sink_retried_writes", _COUNTER, "Writes that had to be done again since the start.", _SINK),
    Declared("sink_in_flight_writes", _GAUGE, "Writes under way.", _SINK),
    Declared(
        "sink_state", _GAUGE, "1 for the state that the sink is in, 0 for the others.", ("sink", "state")
    ),
    Declared("sink_state_since_seconds", _GAUGE, "Unix time at which the sink came into its state.", _SINK),
    Declared("build_info", _GAUGE, "1; the label says which version runs.", ("version",)),
)

# A value, or one for each tuple of labels.
Values = Mapping[str, float | Mapping[tuple[str, ...], float]]


class SourceCounts:
    """What was refused or odd, by source and word, for the sources that gave cause most recently."""

    def __init__(self, sources_max: int = 1_000) -> None:
        self._sources_max = sources_max
        self._counts: OrderedDict[tuple[str, str], int] = OrderedDict()

    def add(self, source: str, word: str, count: int) -> None:
        """Counts; the pair of source and word that was silent longest is forgotten when there are too many."""
        key = (source, word)
        self._counts[key] = self._counts.pop(key, 0) + count
        if len(self._counts) > self._sources_max:
            self._counts.popitem(last=False)

    def listed(self) -> list[tuple[str, str, int]]:
        """Source, word and count, the most recent first."""
        return [(source, word, count) for (source, word), count in reversed(self._counts.items())]


class FrontObserver:
    """What the front door tells, once per request (see `wal_ingest.http.ingest.Observer`).

    `requests`, `accepted` (of them), `body_bytes` and `appends` are the same in plain numbers, to be sampled once a
    second.
    """

    def __init__(self, measured: Mapping[str, Counter | Histogram]) -> None:
        requests, points, size = (
            _counter(measured, name) for name in ("ingest_requests", "ingest_points", "ingest_bytes")
        )
        self._requests = {
            (route, result): requests.labels(route, result) for route in ROUTES for result in RESULTS
        }
        stored = [route for route in ROUTES if route not in ("unparsed", "other")]
        self._points = {route: points.labels(route) for route in stored}
        self._bytes = {route: size.labels(route) for route in stored}
        self._refusals = _counter(measured, "ingest_refusals")
        self._refused_lines = _counter(measured, "ingest_refused_lines")
        self._odd_points = _counter(measured, "ingest_odd_points")
        # Present before the first, so that a rate has a beginning.
        for route in ROUTES:
            for reason in REASONS:
                self._refusals.labels(route, reason)
        for route in stored:
            for reason in REASONS[:3]:
                self._refused_lines.labels(route, reason)
            for oddity in ODDITIES:
                self._odd_points.labels(route, oddity)
        self.by_source = SourceCounts()
        # Called with source, oddity, the unit that the times look like, and how many points.
        self.on_odd: Callable[[str, str, str, int], None] = lambda *_odd: None
        self._append_s = _histogram(measured, "append_seconds")
        self.requests = 0
        self.accepted = 0
        self.body_bytes = 0
        self.appends = Durations()

    def answered(self, route: str, result: str, points: int, body_bytes: int) -> None:
        """A write request was answered; `points` and `body_bytes` are 0 unless it was accepted."""
        self.requests += 1
        self.accepted += result == "accepted"
        self._requests[route, result].inc()
        if points:
            self.body_bytes += body_bytes
            self._points[route].inc(points)
            self._bytes[route].inc(body_bytes)

    def refused(self, route: str, reason: str, source: str, lines: int) -> None:
        """A request was refused as a whole (`lines` is 0), or so many of its lines."""
        (self._refused_lines if lines else self._refusals).labels(route, reason).inc(lines or 1)
        self.by_source.add(source, reason, lines or 1)

    def noticed(self, route: str, oddity: str, source: str, points: int, looks_like: str = "") -> None:
        """So many points were accepted although they are odd; see `on_odd`."""
        self._odd_points.labels(route, oddity).inc(points)
        self.by_source.add(source, oddity, points)
        self.on_odd(source, oddity, looks_like, points)

    def appended(self, seconds: float) -> None:
        """An append became durable after so many seconds."""
        self._append_s.observe(seconds)
        self.appends.record(seconds)


class CommitObserver:
    """What the WAL's writer tells, once per commit and on its own thread.

    `commits` and `entries` are the same in plain numbers.
    """

    def __init__(self, measured: Mapping[str, Counter | Histogram]) -> None:
        self._commits = _counter(measured, "commits")
        self._seconds = _histogram(measured, "commit_seconds")
        self._entries = _histogram(measured, "commit_entries")
        self.commits = 0
        self.entries = 0

    def committed(self, entries: int, seconds: float) -> None:
        """A commit of so many entries took so many seconds."""
        self.commits += 1
        self.entries += entries
        self._commits.inc()
        self._seconds.observe(seconds)
        self._entries.observe(entries)


class Metrics:
    """Everything that is measured at the act; passed to whoever measures, and shown by `exposition`."""

    def __init__(self) -> None:
        # `_created` series would be a third of what a scrape carries, and nobody asks for them.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.measured = {declared.name: _make(declared) for declared in TABLE if declared.measured}
        self.front = FrontObserver(self.measured)
        self.commits = CommitObserver(self.measured)

    def sink_writes(self, sink: str) -> Callable[[float], None]:
        """What a sink's delivery calls with the seconds of each write."""
        observe: Callable[[float], None] = (
            _histogram(self.measured, "sink_write_seconds").labels(sink).observe
        )
        return observe

    def exposition(self, read: Callable[[], Values]) -> Callable[[], bytes]:
        """What a scrape is answered, in Prometheus' text format.

        `read` gives a value for every name of the table that is not measured at the act.
        """
        registry = CollectorRegistry()
        registry.register(_Table(self.measured, read))
        ProcessCollector(registry=registry)
        return lambda: generate_latest(registry)


class _Table(Collector):
    def __init__(self, measured: Mapping[str, Counter | Histogram], read: Callable[[], Values]) -> None:
        self._measured = measured
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Nothing is read before the first scrape."""
        return ()

    def collect(self) -> Iterator[Metric]:
        values = self._read()
        for declared in TABLE:
            if declared.measured:
                yield from self._measured[declared.name].collect()
            else:
                yield _family(declared, values[declared.name])


def _family(declared: Declared, value: float | Mapping[tuple[str, ...], float]) -> Metric:
    kind = CounterMetricFamily if declared.kind is Kind.COUNTER else GaugeMetricFamily
    family = kind(PREFIX + declared.name, declared.help, labels=declared.labels)
    for labels, number in value.items() if isinstance(value, Mapping) else [((), value)]:
        family.add_metric(labels, number)
    return family


def _make(declared: Declared) -> Counter | Histogram:
    name = PREFIX + declared.name
    if declared.kind is Kind.HISTOGRAM:
        return Histogram(name, declared.help, declared.labels, buckets=declared.buckets, registry=None)
    return Counter(name, declared.help, declared.labels, registry=None)


def _counter(measured: Mapping[str, Counter | Histogram], name: str) -> Counter:
    found = measured[name]
    assert isinstance(found, Counter)
    return found


def _histogram(measured: Mapping[str, Counter | Histogram], name: str) -> Histogram:
    found = measured[name]
    assert isinstance(found, Histogram)
    return found
