"""The runbook is true: each section is rehearsed, its commands typed at a node that is really in that trouble."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.flusher.sinks.http_fake import Answer, FakeInfluxDB, Request, fake_influxdb
from tests.rigs.influxdb import InfluxDB
from tests.rigs.loop_image import mounted_image
from tests.rigs.on_call import OnCall, blocks, lines_of, sections
from tests.rigs.processes import wait_until
from tests.rigs.service import to_influxdb
from tests.rigs.victoria_metrics import VictoriaMetrics
from tests.wal.factories import new_entry
from tests.wal.test_damage import PAGE, flip, pages
from wal_ingest.settings import WalSettings
from wal_ingest.wal.entry import Mark, NewEntry
from wal_ingest.wal.store import Store

ROOT = Path(__file__).parent.parent
SECTIONS = sections((ROOT / "RUNBOOK.md").read_text())
REHEARSED: dict[str, str] = {}
MIB = 1 << 20

pytestmark = pytest.mark.needs("curl", "jq")


def rehearses(*anchors: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Notes which sections a test goes through."""

    def note(test: Callable[..., None]) -> Callable[..., None]:
        REHEARSED.update(dict.fromkeys(anchors, test.__name__))
        return test

    return note


def test_every_section_with_commands_is_rehearsed() -> None:
    assert {anchor for anchor, text in SECTIONS.items() if blocks(text)} == set(REHEARSED)


def test_every_alert_leads_to_a_section_and_every_section_is_in_the_tables_of_the_first_one() -> None:
    alerts = (ROOT / "ops/prometheus/alerts.yml").read_text()
    asked = re.findall(r"runbook_url: (\S+)$", alerts, re.MULTILINE)
    assert asked
    assert all("/RUNBOOK.md#" in url for url in asked)
    assert {url.partition("#")[2] for url in asked} <= set(SECTIONS)
    first, *rest = SECTIONS
    told = set(re.findall(r"\]\(#([a-z0-9-]+)\)", SECTIONS[first]))
    assert told == set(rest)


def test_every_alert_is_named_in_its_section() -> None:
    alerts = (ROOT / "ops/prometheus/alerts.yml").read_text()
    for alert, anchor in re.findall(r"- alert: (\w+).*?runbook_url: \S+/RUNBOOK.md#(\S+)", alerts, re.DOTALL):
        assert f"`{alert}`" in SECTIONS[anchor], f"{alert} is not in {anchor}"


def test_every_setting_and_every_link_of_the_page_is_there() -> None:
    page = (ROOT / "RUNBOOK.md").read_text()
    readme = (ROOT / "README.md").read_text()
    named = set(re.findall(r"`((?:server|wal|flusher|influxdb|archive|log)\.[a-z_]+)", page))
    assert len(named) > 5
    assert {name for name in named if f"| `{name}` |" not in readme} == set()
    anchors = re.findall(r"\]\(#([a-z0-9-]+)\)", page)
    assert set(anchors) <= set(SECTIONS)


# -- situations --------------------------------------------------------------------------------------------


def now_ms() -> int:
    """The present in nanoseconds, whole milliseconds."""
    return time.time_ns() // 1_000_000 * 1_000_000


def node(url: str, *, bucket: str = "metrics", **more: Any) -> dict[str, object]:
    """Settings of a node that writes to a database: waits are short, all else is as an operator has it."""
    return to_influxdb(
        url,
        bucket=bucket,
        **{
            "influxdb__org": "acme",
            "wal__keep_confirmed_s": 300,
            "wal__segment_s_max": 60,
            "log__level": "info",
            **more,
        },
    )


@pytest.fixture
def fake() -> Iterator[FakeInfluxDB]:
    """A database that answers what it is told to."""
    with fake_influxdb() as server:
        yield server


@pytest.fixture
def database(tmp_path: Path) -> Iterator[VictoriaMetrics]:
    """A real database of its own, which a test may stop and whose data it may change."""
    root = tmp_path / "database"
    root.mkdir()
    with VictoriaMetrics(root) as server:
        yield server


def wait_counted(database: VictoriaMetrics, name: str, points: int) -> None:
    """Waits until the database shows so many different points: new series take it some seconds."""
    match = f'{{__name__="{name}"}}'
    wait_until(lambda: database.count(match) == points, f"the database has {points} points of {name}")


def port_of(url: str) -> int:
    """The port of an address."""
    return int(url.rpartition(":")[2])


def fake_node(anchor: str, folder: Path, fake: FakeInfluxDB, **more: Any) -> OnCall:
    """Someone on call for a section, with a node that writes to the fake."""
    return OnCall(SECTIONS[anchor], folder, settings=node(fake.url, **more), sink_port=port_of(fake.url))


# -- the node ----------------------------------------------------------------------------------------------


@rehearses("first-look")
def test_the_first_look(tmp_path: Path, fake: FakeInfluxDB) -> None:
    with fake_node("first-look", tmp_path, fake) as on_call:
        on_call.post(lines_of(1200, first_ns=now_ms()), settled=True)
        on_call.type_block()


def test_the_shell_of_the_first_look_has_the_settings_and_the_token_and_is_not_root(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    found = re.search(r"```sh\n(.*?)```", SECTIONS["first-look"], re.DOTALL)
    assert found is not None
    (tmp_path / "environment").write_text("INFLUXDB_TOKEN='secret'\n")
    command = found[1].replace("/etc/wal-ingest", str(tmp_path)).replace("uid=wal-ingest", "uid=nobody")
    command = (
        command.replace("gid=wal-ingest", "gid=nogroup").removeprefix("sudo ").rstrip().removesuffix("bash'")
    )
    asked = '"id -un; echo \\$INFLUXDB_TOKEN; echo \\$WAL_INGEST_CONFIG; echo \\$WAL_INGEST_SERVER__DATA_DIR"'
    ran = subprocess.run(
        ["bash", "-c", f"{command}bash -c {asked}'"], capture_output=True, text=True, check=True, timeout=20
    )
    assert ran.stdout.split() == ["nobody", "secret", f"{tmp_path}/wal-ingest.toml", "/var/lib/wal-ingest"]


@rehearses("node-down")
def test_a_node_that_is_down_is_started_again(tmp_path: Path, fake: FakeInfluxDB) -> None:
    with fake_node("node-down", tmp_path, fake) as on_call:
        on_call.post(lines_of(1200, first_ns=now_ms()), settled=True)
        on_call.service.kill()
        on_call.type_block()
        on_call.type_block()


@rehearses("it-does-not-start")
def test_a_node_that_does_not_start_says_why(tmp_path: Path, fake: FakeInfluxDB) -> None:
    with fake_node("it-does-not-start", tmp_path, fake) as on_call:
        settings = on_call.folder / "etc/wal-ingest.toml"
        settings.write_text("[wal]\nkeep_confirmed = 3600\n")
        on_call.type_block()
        settings.write_text("[wal]\nkeep_confirmed_s = 3600\n")
        on_call.type_block()
        on_call.type_block()
        on_call.stop()
        write_newer_segment(on_call.service.data_dir)
        on_call.type_block()


def write_newer_segment(data_dir: Path) -> None:
    """A segment behind the last one as a newer version would leave it."""
    store = Store(data_dir, WalSettings(), now_ns=time.time_ns)
    store.wal.commit([[new_entry(1)]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wal_ingest.wal.segment.VERSION", 2)
        store.wal.seal()
    store.close()


@rehearses("no-points")
def test_a_node_without_points_is_asked_from_the_senders_side(tmp_path: Path, fake: FakeInfluxDB) -> None:
    with fake_node("no-points", tmp_path, fake) as on_call:
        on_call.post(lines_of(1, first_ns=now_ms()), settled=True)
        on_call.type_block()
        on_call.type_block()


@rehearses("requests-refused")
def test_refusals_are_told_with_their_reasons(tmp_path: Path, fake: FakeInfluxDB) -> None:
    fake.answer = lambda _request: Answer(503)
    with fake_node("requests-refused", tmp_path, fake, **SMALL) as on_call:
        fill(on_call)
        on_call.type_block()
        fake.answer = lambda _request: Answer()
        on_call.settle()
        wait_until(lambda: on_call.service.ready() == 200, "the node takes points again")
        with pytest.raises(urllib.error.HTTPError, match="400"):
            on_call.post("cpu,host=web-17 user=lots\n")
        on_call.type_block()


@rehearses("slow-disk")
def test_a_slow_disk_is_measured(tmp_path: Path, fake: FakeInfluxDB) -> None:
    with fake_node("slow-disk", tmp_path, fake) as on_call:
        on_call.post(lines_of(100, first_ns=now_ms()), settled=True)
        on_call.type_block()
        on_call.type_block()


@rehearses("running-short")
def test_descriptors_and_memory_are_read(tmp_path: Path, fake: FakeInfluxDB) -> None:
    with fake_node("running-short", tmp_path, fake) as on_call:
        on_call.type_block()


# -- room --------------------------------------------------------------------------------------------------

SMALL: dict[str, object] = {"wal__wal_bytes_max": 4 * MIB, "wal__segment_bytes_max": MIB}


def fill(on_call: OnCall) -> None:
    """Points that compress badly, until the node refuses one request."""
    rng, first_ns = Random(4), now_ms()
    for number in range(200):
        texts = (rng.randbytes(60).hex() for _ in range(1000))
        first = first_ns + 1000 * number
        lines = [f'log,host=web-1 text="{text}" {first + at}' for at, text in enumerate(texts)]
        try:
            on_call.post("\n".join(lines))
        except urllib.error.HTTPError as refused:
            if refused.code == 503:
                return
            raise
    raise AssertionError("it did not fill")


@rehearses("wal-filling")
def test_a_log_that_fills_is_given_room_or_relieved(tmp_path: Path, fake: FakeInfluxDB) -> None:
    fake.answer = lambda _request: Answer(503)
    with fake_node("wal-filling", tmp_path, fake, **SMALL) as on_call:
        fill(on_call)
        on_call.type_block()
        on_call.configure({"wal.wal_bytes_max": 100 * MIB})
        on_call.type_block()
        on_call.type_block()


@rehearses("disk-full")
@pytest.mark.needs("loop")
def test_a_full_disk_refuses_until_there_is_room(tmp_path: Path, fake: FakeInfluxDB) -> None:
    with mounted_image(tmp_path, bytes_max=64 * MIB) as disk:
        (disk.path / "node").mkdir()
        settings = {"wal__segment_bytes_max": MIB, "wal__free_disk_bytes_min": 16 * MIB}
        with fake_node("disk-full", disk.path / "node", fake, **settings) as on_call:
            on_call.post(lines_of(100, first_ns=now_ms()), settled=True)
            on_call.reader.moved["/mnt/spare"] = str(tmp_path)
            (on_call.service.data_dir / "core.4711").write_bytes(bytes(28 * MIB))
            wait_until(lambda: on_call.service.ready() == 503, "the node refuses points")
            on_call.type_block()
            on_call.type_block()


# -- the database ------------------------------------------------------------------------------------------


@rehearses("sink-down")
@pytest.mark.needs("victoria-metrics")
def test_a_database_that_is_down_is_waited_for(tmp_path: Path, database: VictoriaMetrics) -> None:
    with OnCall(
        SECTIONS["sink-down"], tmp_path, settings=node(database.url), sink_port=database.port
    ) as on_call:
        on_call.post(lines_of(1200, first_ns=now_ms()), settled=True)
        database.stop()
        on_call.post(lines_of(300, measurement="mem", first_ns=now_ms()))
        on_call.type_block()
        database.start()
        on_call.type_block()
        wait_counted(database, "cpu_user", 1200)
        wait_counted(database, "mem_user", 300)


@rehearses("token-expired")
def test_an_expired_token_is_replaced(tmp_path: Path, fake: FakeInfluxDB) -> None:
    def judge(request: Request) -> Answer:
        if request.headers["authorization"] == "Token new":
            return Answer(400, b'{"code":"invalid","message":"no points"}') if not request.lines else Answer()
        said = b'{"code":"unauthorized","message":"token is expired"}'
        return Answer(401, said, {"Content-Type": "application/json"})

    fake.answer = judge
    with fake_node("token-expired", tmp_path, fake) as on_call:
        on_call.post(lines_of(300, first_ns=now_ms()))
        on_call.type_block()
        on_call.configure({"influxdb.token": "new"})
        on_call.type_block()


@rehearses("sink-failed")
def test_an_optional_sink_that_broke_down_is_resumed(tmp_path: Path, fake: FakeInfluxDB) -> None:
    more = {"archive__enabled": "on", "archive__required": False}
    (tmp_path / "data").mkdir()
    (tmp_path / "data/archive").write_text("in the way")
    with fake_node("sink-failed", tmp_path, fake, **more) as on_call:
        on_call.post(lines_of(300, first_ns=now_ms()))
        on_call.type_block()
        (tmp_path / "data/archive").unlink()
        on_call.type_block()


@rehearses("sink-paused")
def test_a_paused_sink_is_resumed_or_given_up(tmp_path: Path, fake: FakeInfluxDB) -> None:
    with fake_node("sink-paused", tmp_path, fake) as on_call:
        on_call.type_block()
        on_call.post(lines_of(300, first_ns=now_ms()))
        on_call.type_block()
        on_call.type_block()


@rehearses("stream-without-numbers")
def test_a_stream_without_numbers_is_forgotten(tmp_path: Path, fake: FakeInfluxDB) -> None:
    with fake_node("stream-without-numbers", tmp_path, fake) as on_call:
        on_call.stop()
        # As a version without the bound may have left it.
        store = Store(on_call.service.data_dir, WalSettings(), now_ns=time.time_ns)
        lines = b"temp value=1 1763800000000000000\n"
        for number in (1, 2, 2**53 - 1):
            store.wal.commit([[NewEntry(lines, 1, time.time_ns(), mark=Mark("web-17", number, 0))]])
        store.close()
        on_call.start()
        on_call.type_block()
        on_call.type_block()


@rehearses("sink-absent")
def test_a_sink_that_is_missing_from_the_settings_is_forgotten(tmp_path: Path, fake: FakeInfluxDB) -> None:
    fake.answer = lambda _request: Answer(503)
    with fake_node("sink-absent", tmp_path, fake) as on_call:
        on_call.post(lines_of(300, first_ns=now_ms()))
        on_call.stop()
        on_call.configure({"influxdb.url": ""})
        on_call.start()
        on_call.service.wait_drained("archive")
        on_call.type_block()
        on_call.type_block()


@rehearses("sink-falls-behind")
def test_a_sink_that_falls_behind_is_given_more_at_a_time(tmp_path: Path, fake: FakeInfluxDB) -> None:
    faster = threading.Event()

    def slow(_request: Request) -> Answer:
        faster.wait(2.0)
        return Answer()

    fake.answer = slow
    more = {"influxdb__in_flight_max": 1, "flusher__batch_points_max": 100}
    with fake_node("sink-falls-behind", tmp_path, fake, **more) as on_call:
        on_call.post(lines_of(5000, first_ns=now_ms()))
        on_call.type_block()
        faster.set()
        on_call.configure({"influxdb.in_flight_max": 8, "flusher.batch_points_max": 5000})
        on_call.type_block()


@rehearses("dead-letters")
@pytest.mark.needs("influxdb")
def test_dead_letters_are_looked_at_kept_retried_and_dropped(tmp_path: Path, influxdb: InfluxDB) -> None:
    bucket = influxdb.fresh_database()
    settings = node(influxdb.url, bucket=bucket)
    with OnCall(
        SECTIONS["dead-letters"], tmp_path, settings=settings, sink_port=port_of(influxdb.url)
    ) as on_call:
        now = now_ms()
        on_call.post(f"temp,room=a value=20.5 {now}\n", settled=True)
        bad = "".join(f'temp,room=bad{n} value="hot" {now + n}\n' for n in range(3))
        on_call.post(bad, settled=True)
        on_call.type_block()
        influxdb.query('DROP MEASUREMENT "temp"', database=bucket)
        on_call.type_block()
        on_call.post(f"temp,room=a value=20.5 {now}\n", settled=True)
        on_call.type_block()


# -- damage, backups, machines -----------------------------------------------------------------------------


@rehearses("damaged-segment")
def test_a_damaged_segment_is_salvaged(tmp_path: Path, fake: FakeInfluxDB) -> None:
    fake.answer = lambda _request: Answer(503)
    with fake_node("damaged-segment", tmp_path, fake, wal__segment_s_max=3600) as on_call:
        for number in range(30):
            on_call.post(lines_of(400, first_ns=now_ms() + number * 1_000_000_000))
        on_call.stop()
        [segment] = (on_call.service.data_dir / "wal").glob("*.lmdb")
        flip(segment, pages(segment) // 2 * PAGE + 1000)
        on_call.start()
        fake.answer = lambda _request: Answer()
        wait_until(lambda: on_call.service.status()["damaged"], "the damage is found")
        # The page is of a node that has delivered what can be read of it.
        wait_until(
            lambda: on_call.service.status()["sinks"]["influxdb"]["skipped_points"], "the rest is delivered"
        )
        on_call.type_block()
        on_call.type_block()
        on_call.type_block()


@rehearses("points-unaccounted")
def test_an_account_that_does_not_add_up_is_kept_as_evidence(tmp_path: Path, fake: FakeInfluxDB) -> None:
    with fake_node("points-unaccounted", tmp_path, fake) as on_call:
        on_call.post(lines_of(300, first_ns=now_ms()), settled=True)
        on_call.stop()
        forget_confirmed(on_call.service.data_dir, 2)
        on_call.start()
        on_call.type_block()
        on_call.type_block()


def forget_confirmed(data_dir: Path, points: int) -> None:
    """Takes points out of what the cursor says was confirmed, as a bug would."""
    store = Store(data_dir, WalSettings(), now_ns=time.time_ns)
    cursor = store.cursor("influxdb")
    store.commit_cursor(
        "influxdb", type(cursor)(cursor.seq, cursor.points, confirmed=cursor.confirmed - points)
    )
    store.close()


@rehearses("restoring-the-database-from-a-backup")
@pytest.mark.needs("victoria-metrics")
def test_what_the_database_lost_is_replayed(tmp_path: Path, database: VictoriaMetrics) -> None:
    anchor = "restoring-the-database-from-a-backup"
    with OnCall(SECTIONS[anchor], tmp_path, settings=node(database.url), sink_port=database.port) as on_call:
        on_call.post(lines_of(1200, first_ns=now_ms()), settled=True)
        on_call.type_block()
        database.stop()
        shutil.copytree(database.root / "data", tmp_path / "backup")
        database.start()
        on_call.post(lines_of(300, measurement="mem", first_ns=now_ms()), settled=True)
        wait_counted(database, "mem_user", 300)
        database.stop()
        shutil.rmtree(database.root / "data")
        shutil.copytree(tmp_path / "backup", database.root / "data")
        database.start()
        assert database.count('{__name__="mem_user"}') == 0
        on_call.type_block()
        on_call.type_block()
        wait_counted(database, "cpu_user", 1200)
        wait_counted(database, "mem_user", 300)
        on_call.configure({"wal.keep_confirmed_s": 0, "wal.segment_s_max": 1})
        on_call.stop()
        on_call.start()
        wait_until(lambda: on_call.service.status()["points_kept"] == 0, "what is confirmed is dropped")
        on_call.type_block()


@rehearses("moving-a-node-to-another-machine")
def test_a_node_moves_with_all_that_it_holds(tmp_path: Path, fake: FakeInfluxDB) -> None:
    fake.answer = lambda _request: Answer(503)
    with fake_node("moving-a-node-to-another-machine", tmp_path, fake) as on_call:
        on_call.post(lines_of(1200, first_ns=now_ms()))
        on_call.type_block()
        old, new = on_call.service.data_dir, tmp_path / "elsewhere"
        on_call.service.data_dir = new
        on_call.reader.moved["/var/lib/wal-ingest"] = str(new)
        on_call.configure({})
        new.mkdir()
        on_call.type_block()
        fake.answer = lambda _request: Answer()
        on_call.type_block()
        assert sum(request.lines.count(b"\n") for request in fake.requests[-2:]) >= 1200
        assert old.exists()


@rehearses("upgrading-and-going-back")
def test_an_upgrade_is_a_stop_and_a_start_and_going_back_is_refused_where_it_would_harm(
    tmp_path: Path, fake: FakeInfluxDB
) -> None:
    with fake_node("upgrading-and-going-back", tmp_path, fake) as on_call:
        (on_call.folder / "etc/wal-ingest.toml").write_text("[wal]\nkeep_confirmed_s = 300\n")
        on_call.post(lines_of(300, first_ns=now_ms()), settled=True)
        on_call.type_block()
        on_call.type_block()
        on_call.stop()
        write_newer_segment(on_call.service.data_dir)
        on_call.type_block()
