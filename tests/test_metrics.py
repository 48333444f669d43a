"""The metrics: every declared one is shown, with its values, in Prometheus' own format."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.rigs.processes import wait_until
from tests.rigs.service import Service
from wal_ingest.metrics import PREFIX, TABLE, Values, exposition


def test_every_declared_metric_is_shown_with_its_labels() -> None:
    values: Values = {
        declared.name: {tuple(f"{label}-x" for label in declared.labels): 7.0} if declared.labels else 3.0
        for declared in TABLE
    }
    shown = {
        family.name: family
        for family in text_string_to_metric_families(exposition(lambda: values)().decode())
    }
    assert set(shown) == {PREFIX + declared.name for declared in TABLE}
    for declared in TABLE:
        family = shown[PREFIX + declared.name]
        [sample] = family.samples
        assert family.type == ("counter" if declared.counter else "gauge")
        assert family.documentation == declared.help
        assert sample.labels == {label: f"{label}-x" for label in declared.labels}
        assert sample.value == (7.0 if declared.labels else 3.0)


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
