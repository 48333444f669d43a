"""The metrics that `GET /metrics` shows, as one declared table, filled when somebody asks.

Nothing is counted for their sake: every number is one that the node keeps anyway, so a point costs nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True)
class Declared:
    """One metric: its name without the prefix, whether it only ever rises, and what it says (with the unit)."""

    name: str
    counter: bool
    help: str
    labels: tuple[str, ...] = ()


PREFIX = "wal_ingest_"
_SINK = ("sink",)
TABLE = (
    Declared("accepted_points", True, "Points of all entries ever committed."),
    Declared("wal_bytes", False, "Bytes that the WAL's segments take."),
    Declared("wal_segments", False, "Segments that are kept, confirmed ones among them."),
    Declared("wal_refusing", False, "1 while nothing new is taken (see /readyz for why), else 0."),
    Declared("wal_damaged_files", False, "Files set aside as damaged since the start."),
    Declared("sink_confirmed_points", True, "Points that the sink has confirmed, durably noted.", _SINK),
    Declared("sink_parked_points", True, "Points that the sink will never take: its dead letters.", _SINK),
    Declared(
        "sink_skipped_points", True, "Points in segments set aside before the sink came to them.", _SINK
    ),
    Declared("sink_waiting_points", False, "Points that the sink has yet to confirm.", _SINK),
    Declared(
        "sink_unaccounted_points", False, "Points that went none of the known ways; 0, or a bug.", _SINK
    ),
    Declared("sink_retried_writes", True, "Writes that had to be done again since the start.", _SINK),
    Declared("sink_in_flight_writes", False, "Writes under way.", _SINK),
    Declared(
        "sink_state", False, "1 for the state that the sink is in, 0 for the others.", ("sink", "state")
    ),
    Declared("sink_state_since_seconds", False, "Unix time at which the sink came into its state.", _SINK),
)

# A value, or one for each tuple of labels.
Values = Mapping[str, float | Mapping[tuple[str, ...], float]]


class _Table(Collector):
    def __init__(self, read: Callable[[], Values]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Nothing is read before the first scrape."""
        return ()

    def collect(self) -> Iterator[Metric]:
        values = self._read()
        for declared in TABLE:
            kind = CounterMetricFamily if declared.counter else GaugeMetricFamily
            family = kind(PREFIX + declared.name, declared.help, labels=declared.labels)
            value = values[declared.name]
            for labels, number in value.items() if isinstance(value, Mapping) else [((), value)]:
                family.add_metric(labels, number)
            yield family


def exposition(read: Callable[[], Values]) -> Callable[[], bytes]:
    """What a scrape is answered, in Prometheus' text format; `read` gives a value for every name of the table."""
    registry = CollectorRegistry()
    registry.register(_Table(read))
    return lambda: generate_latest(registry)
