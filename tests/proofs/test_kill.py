"""kill -9 at any moment: every point that was answered 2xx is in the database at the end."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from random import Random

import pytest

from tests.rigs.account import account_victoria_metrics
from tests.rigs.fleet import EVERY_SHAPE, MS, Plan
from tests.rigs.load import Load, Sent
from tests.rigs.processes import wait_until
from tests.rigs.seeds import round_seed
from tests.rigs.service import Service, to_influxdb
from tests.rigs.victoria_metrics import VictoriaMetrics

SHAPES = tuple(shape for shape in EVERY_SHAPE if shape.timed)
LIVES_S_MAX = 0.5


def _round(service: Service, number: int, base_ns: int) -> list[Sent]:
    """Serves under load and dies at a moment that the round's seed decides."""
    seed = round_seed()
    dice = Random(seed)
    lives_s = dice.uniform(0, LIVES_S_MAX)
    clients = dice.randint(1, 6)
    print(f"round {number}: seed {seed}, {clients} clients, kill -9 after {lives_s * 1000:.0f} ms of load")
    plan = Plan(f"kill{number}", base_ns, points=60, shapes=SHAPES, seed=seed, vary=True)
    service.start()
    with Load(service.port, plan, clients=clients) as load:
        load.wait_for_acks(1)
        threading.Event().wait(lives_s)
        service.kill()
    unexpected = [one for one in load.sent if not one.acked and one.status != 0]
    assert not unexpected, f"{unexpected[0].status} {unexpected[0].reply!r}"
    return load.sent


def _kills_lose_nothing(database: VictoriaMetrics, tmp_path: Path, rounds: int) -> None:
    base_ns = (time.time_ns() - 7200 * 1000 * MS) // MS * MS
    settings = to_influxdb(database.url, wal__segment_bytes_max=1024 * 1024, wal__segment_s_max=0.3)
    service = Service(tmp_path / "data", logs=tmp_path, settings=settings)
    with service:
        service.kill()  # the first life is over before any load: an empty WAL has to survive that too
        sent = [one for number in range(rounds) for one in _round(service, number, base_ns)]
        service.start()
        told = service.wait_drained("influxdb", s_max=60)
        assert service.stop() == 0

    assert told["sinks"]["influxdb"]["parked"] == 0
    matches = ('{__name__=~"kill.*"}', '{__name__=~"server_metrics_.*",server_id=~"kill.*"}')
    wait_until(
        lambda: account_victoria_metrics(database.values(*matches), sent).lost == 0,
        "every point answered 2xx is in VictoriaMetrics",
        s_max=15,
        every_s=1,
    )
    account_victoria_metrics(database.values(*matches), sent).check()
    unanswered = sum(not one.acked for one in sent)
    print(f"{len(sent)} requests, {unanswered} of them cut off without an answer")
    assert unanswered > 0, "no kill ever hit a request under way"


@pytest.mark.timeout(300)
@pytest.mark.needs("victoria-metrics")
def test_6_kills_under_load_lose_no_point_that_was_answered_2xx(tmp_path: Path) -> None:
    with VictoriaMetrics(tmp_path) as database:
        _kills_lose_nothing(database, tmp_path, rounds=6)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.needs("victoria-metrics")
def test_500_kills_under_load_lose_no_point_that_was_answered_2xx(tmp_path: Path) -> None:
    with VictoriaMetrics(tmp_path) as database:
        _kills_lose_nothing(database, tmp_path, rounds=500)
