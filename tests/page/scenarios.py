"""What a node may say of itself: statuses and histories in the shape of `/status.json` and `/history.json`."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from wal_ingest.service.recent import OddTimes
from wal_ingest.service.remedies import condition_of
from wal_ingest.service.verdict import Facts, SinkFacts, verdict
from wal_ingest.wal.accounts import Account

NOW = datetime(2026, 11, 23, 2, 31, 7, tzinfo=UTC)
GIB = 1 << 30

Status = dict[str, Any]
History = dict[str, Any]


def ago(**passed: float) -> str:
    """A moment so long before `NOW`, as the node writes it."""
    return (NOW - timedelta(**passed)).isoformat()


def sink(name: str = "influxdb", **changed: Any) -> dict[str, Any]:
    """A sink that delivers, but for what is `changed`."""
    condition = condition_of(changed.get("state", "delivering"))
    return {
        "name": name,
        "state": "delivering",
        "level": condition.level.word,
        "meaning": condition.meaning,
        "required": True,
        "since": ago(hours=5),
        "last_error": "",
        "last_error_at": None,
        "waiting_points": 1840,
        "lag_s": 0.8,
        "confirmed_points": 4_873_205_117,
        "confirmed_per_s": 482_340.0,
        "dead_letters": 0,
        "parked_points": 0,
        "given_up_points": 0,
        "skipped_points": 0,
        "expired_points": 0,
        "unaccounted_points": 0,
        "retried_writes": 0,
        "in_flight": 4,
        "catch_up_s": 0.1,
        **changed,
    }


def healthy(**changed: Any) -> Status:
    """A busy node on which all is well. `changed` replaces whole top-level parts; `wal` is merged."""
    wal = {
        "bytes": 412 << 20,
        "bytes_max": 50 * GIB,
        "disk_free_bytes": 317 * GIB,
        "disk_free_bytes_min": GIB,
        "segments": 14,
        "last_seq": 4_901_337,
        "points_accepted": 4_873_206_957,
        "points_kept": 3_204_000,
        "oldest_waiting_s": 0.9,
        "full_in_s": None,
        "disk_full_in_s": None,
        "damaged_files": 0,
        **changed.pop("wal", {}),
    }
    status = {
        "version": "0.1.0",
        "now": NOW.isoformat(),
        "started": ago(days=2, hours=4),
        "wal_id": "0c3f9a52b1d84e07",
        "data_dir": "/var/lib/wal-ingest",
        "ready": True,
        "reasons": [],
        "rates": {"requests_per_s": 482.0, "points_per_s": 482_113.0, "bytes_per_s": 34_600_000.0},
        "append": {"p50_ms": 1.31, "p99_ms": 4.87},
        "commit": {"p50_ms": 1.31, "p99_ms": 4.87, "per_s": 311.0, "entries_per_commit": 1.55},
        "wal": wal,
        "sinks": [sink()],
        "errors": [],
        "events": [],
        "dead_letters": [],
        "odd_times": [],
        **changed,
    }
    given = changed.get("verdict")
    return concluded(status) | ({"verdict": given} if given else {})


def concluded(status: Status) -> Status:
    """The same with the account and the verdict that follow from the rest, as the node itself concludes them."""
    status["account"] = {one["name"]: _account(one).as_json() for one in status["sinks"]}
    now = datetime.fromisoformat(status["now"])
    facts = Facts(
        reasons=status["reasons"],
        sinks=[
            SinkFacts(
                one["name"],
                one["state"],
                (now - datetime.fromisoformat(one["since"])).total_seconds(),
                one["lag_s"] or 0.0,
                one["catch_up_s"],
                _account(one),
            )
            for one in status["sinks"]
        ],
        full_in_s=status["wal"]["full_in_s"],
        disk_full_in_s=status["wal"]["disk_full_in_s"],
        damaged_files=status["wal"]["damaged_files"],
        odd_times=[
            OddTimes(odd["source"], odd["oddity"], odd["looks_like"] or "", odd["points"])
            for odd in status["odd_times"]
        ],
    )
    status["verdict"] = verdict(facts).as_json()
    return status


def _account(one: dict[str, Any]) -> Account:
    delivered, waiting, parked = one["confirmed_points"], one["waiting_points"], one["dead_letters"]
    given_up, unaccounted = one["given_up_points"], one["unaccounted_points"]
    accepted = delivered + waiting + parked + given_up + unaccounted
    return Account(accepted, delivered, waiting, parked, given_up, unaccounted)


def sink_away() -> Status:
    """The database has been away since 02:13; its points wait."""
    refused = "write to http://influx-1:8086: connection refused"
    away = sink(
        state="retrying",
        since=ago(minutes=18),
        last_error=refused,
        last_error_at=ago(seconds=12),
        waiting_points=1_204_113,
        lag_s=1087.0,
        confirmed_per_s=0.0,
        retried_writes=118,
        dead_letters=412,
        parked_points=412,
        catch_up_s=None,
    )
    kafka = sink("kafka", required=False, state="paused", since=ago(hours=26), waiting_points=0, catch_up_s=0)
    return healthy(
        sinks=[away, kafka],
        wal={"bytes": 21 * GIB, "full_in_s": 2510.0, "oldest_waiting_s": 1087.0},
        events=[
            {"at": ago(seconds=12), "kind": "error", "source": "influxdb", "message": refused},
            {
                "at": ago(hours=26),
                "kind": "operator",
                "source": "operator",
                "message": "sink pause (sink=kafka) by ada (uid 1000, pid 4711): done",
            },
        ],
        dead_letters=[
            {
                "sink": "influxdb",
                "reason": "field type conflict: input field 'value' on measurement 'disk' is type float",
                "points": 412,
                "last_at": ago(minutes=55),
            }
        ],
    )


def wal_full() -> Status:
    """Nothing more fits: the sink has been misconfigured for too long."""
    holding = sink(
        state="holding",
        since=ago(days=1, hours=2),
        last_error="401 unauthorized: token expired",
        last_error_at=ago(seconds=3),
        waiting_points=40_000_000_000,
        lag_s=93_600.0,
        confirmed_per_s=0,
        catch_up_s=None,
    )
    return healthy(
        ready=False,
        reasons=["the WAL is full: 50.0 GiB of 50.0 GiB"],
        sinks=[holding],
        wal={"bytes": 50 * GIB, "full_in_s": 0.0, "disk_free_bytes": 1_200_000_000},
    )


def just_started() -> Status:
    """Nothing has come in yet, so little is known."""
    status = healthy(sinks=[sink("archive", state="idle", waiting_points=0, lag_s=None, catch_up_s=0)])
    status["rates"] = dict.fromkeys(status["rates"], 0.0)
    status["append"] = {"p50_ms": None, "p99_ms": None}
    status["commit"] = {"p50_ms": None, "p99_ms": None, "per_s": 0.0, "entries_per_commit": None}
    status["wal"] |= {"points_accepted": 0, "last_seq": 0, "oldest_waiting_s": None}
    return status


def history(*sinks: str, values: int = 360, gap: range = range(150, 170)) -> History:
    """An hour in which the load swells and, for a while, nothing is known of the appends."""
    noise = Random(4)
    came = [round(480_000 + 40_000 * math.sin(at / 40) + noise.uniform(-9e3, 9e3)) for at in range(values)]
    return {
        "end": NOW.isoformat(),
        "step_s": 10,
        "points_per_s": came,
        "wal_bytes": [round((0.3 + max(0, at - 250) * 0.18) * GIB) for at in range(values)],
        "append_p99_ms": [None if at in gap else 4 + 2 * noise.random() for at in range(values)],
        "sinks": {
            name: {
                "waiting_points": [max(0, at - 250) * 11_000 for at in range(values)],
                "confirmed_per_s": [rate if at < 250 else 0 for at, rate in enumerate(came)],
            }
            for name in sinks
        },
    }
