"""The metrics: every declared one is shown, with its values, in Prometheus' own format."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.rigs.processes import wait_until
from tests.rigs.service import Service
from wal_ingest.http import ingest
from wal_ingest.http.observer import Oddity, Reason
from wal_ingest.metrics import ODDITIES, PREFIX, REASONS, ROUTES, TABLE, Metrics, Values

VALUES: Values = {
    declared.name: {} if declared.labels else 0.0 for declared in TABLE if not declared.measured
}


def shown(text: str) -> dict[str, Metric]:
    """The families of a scrape by their names."""
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_every_declared_metric_is_shown_with_its_kind_help_and_labels() -> None:
    values: Values = {
        declared.name: {tuple(f"{label}-x" for label in declared.labels): 7.0} if declared.labels else 3.0
        for declared in TABLE
        if not declared.measured
    }
    metrics = Metrics()
    metrics.sink_writes("sink-x")(0.5)
    for lines in (0, 3):
        metrics.front.refused("/write", "malformed", "10.0.0.7", lines)
    metrics.front.noticed("/write", "time_past", "10.0.0.7", 5)
    families = shown(metrics.exposition(lambda: values)().decode())
    ours = {name for name in families if name.startswith(PREFIX)}
    assert ours == {PREFIX + declared.name for declared in TABLE}
    for declared in TABLE:
        family = families[PREFIX + declared.name]
        assert family.type == declared.kind.value
        assert family.documentation == declared.help
        labels = {label for sample in family.samples for label in sample.labels}
        assert labels - {"le"} == set(declared.labels)
        assert not [sample.name for sample in family.samples if sample.name.endswith("_created")]
        if not declared.measured:
            assert [sample.value for sample in family.samples] == [7.0 if declared.labels else 3.0]


def test_the_process_shows_its_memory_and_its_descriptors() -> None:
    families = shown(Metrics().exposition(lambda: VALUES)().decode())
    assert families["process_resident_memory_bytes"].samples[0].value > 1e6
    assert families["process_open_fds"].samples[0].value > 2


def test_what_is_measured_is_counted_once_an_act() -> None:
    metrics = Metrics()
    metrics.front.answered("/write", "accepted", 1000, 80_000)
    metrics.front.answered("/write", "unavailable", 0, 0)
    metrics.front.appended(0.004)
    metrics.commits.committed(entries=7, seconds=0.003)
    families = shown(metrics.exposition(lambda: VALUES)().decode())
    samples = {
        (sample.name.removeprefix(PREFIX), *sample.labels.values()): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert samples["ingest_requests_total", "accepted", "/write"] == 1
    assert samples["ingest_requests_total", "unavailable", "/write"] == 1
    assert samples["ingest_requests_total", "failed", "/metrics"] == 0, "present before the first"
    assert samples["ingest_points_total", "/write"] == 1000
    assert samples["ingest_bytes_total", "/write"] == 80_000
    assert samples["append_seconds_bucket", "0.003"] == 0
    assert samples["append_seconds_bucket", "0.005"] == 1
    assert samples["commit_entries_sum",] == 7
    assert samples["commit_seconds_count",] == samples["commits_total",] == 1


def test_the_front_door_and_the_table_speak_of_the_same_routes() -> None:
    assert set(ROUTES) == {*ingest.ROUTES, ingest.STREAM_PATH, ingest.UNPARSED_ROUTE, ingest.OTHER_ROUTE}


def test_the_front_door_and_the_table_have_the_same_reasons() -> None:
    assert tuple(reason.value for reason in Reason) == REASONS
    assert tuple(oddity.value for oddity in Oddity) == ODDITIES


def test_the_account_of_a_running_node_adds_up(tmp_path: Path) -> None:
    with Service(tmp_path / "data", logs=tmp_path) as service:
        service.post("/metrics", b"m f=1 1\n" * 250, {"Content-Type": "text/plain"})

        def account() -> dict[str, float]:
            text = service.get("/metrics")
            numbers = {
                sample.name.removeprefix(PREFIX): sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
                if "state" not in sample.labels
            }
            return numbers if numbers["sink_confirmed_points_total"] == 250 else {}

        numbers = wait_until(account, "the archive has confirmed the points")
    assert numbers["accepted_points_total"] == 250
    for name in ("parked_points_total", "skipped_points_total", "waiting_points", "unaccounted_points"):
        assert numbers[f"sink_{name}"] == 0
    assert numbers["wal_refusing"] == 0
    assert numbers["wal_segments"] == 1
