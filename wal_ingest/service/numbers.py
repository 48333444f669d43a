"""What the node says of itself in numbers: `GET /metrics`, `/readyz`, `/status.json`, `/history.json`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from wal_ingest import __version__
from wal_ingest.errors import WalFull
from wal_ingest.flusher.status import SinkState, SinkStatus
from wal_ingest.history import STEP_S
from wal_ingest.metrics import Values
from wal_ingest.service.recent import WINDOW_S, OddTimes
from wal_ingest.service.remedies import Level, condition_of
from wal_ingest.service.verdict import Facts, SinkFacts, Verdict, verdict
from wal_ingest.service.watch import ERRORS_MAX, Watch, holding
from wal_ingest.settings import Settings
from wal_ingest.wal.accounts import Account, account_of
from wal_ingest.wal.store import Store
from wal_ingest.wal.writer import Writer

# States of a sink that an operator should hear of.
TROUBLED = (SinkState.RETRYING, SinkState.HOLDING, SinkState.FAILED, SinkState.ABSENT)

# States in which a sink takes points, so that there is a rate to go by.
_TAKING = (SinkState.IDLE, SinkState.DELIVERING)

_LETTER_GROUPS_MAX = 20
_ODD_SOURCES_MAX = 20


@dataclass(frozen=True, slots=True)
class Numbers:
    """The node as others see it, from memory. `not_ready` gives the reasons, `now` aware times."""

    store: Store
    writer: Writer
    settings: Settings
    watch: Watch
    statuses: Callable[[], Sequence[SinkStatus]]
    not_ready: Callable[[], Sequence[str]]
    streams: Callable[[], int]
    now: Callable[[], datetime]
    monotonic_s: Callable[[], float]
    started: datetime

    # -- /metrics --------------------------------------------------------------------------------------

    def metrics(self) -> Values:
        """A value for every name in the table of metrics that is not measured at the act."""
        sinks, watch = self.statuses(), self.watch
        accounts = self.accounts(sinks)

        def count(value: Callable[[Account], float]) -> dict[tuple[str, ...], float]:
            return {(name,): value(account) for name, account in accounts.items()}

        def each(value: Callable[[SinkStatus], float]) -> dict[tuple[str, ...], float]:
            return {(sink.name,): value(sink) for sink in sinks}

        wal, limits = self.store.wal, self.settings.wal
        return {
            "streams": self.streams(),
            "streams_max": self.settings.server.streams_max,
            "accepted_points": wal.points_total,
            "wal_bytes": wal.bytes,
            "wal_bytes_max": limits.wal_bytes_max,
            "wal_segments": len(wal.segments()),
            "wal_refusing": float(self.writer.refusal() is not None),
            "wal_damaged_files": len(wal.damaged),
            "wal_oldest_waiting_seconds": self._oldest_waiting_s(sinks),
            "wal_full_in_seconds": _or_never(self._full_in_s()),
            "disk_free_bytes": watch.disk_free_bytes,
            "disk_free_bytes_min": limits.free_disk_bytes_min,
            "disk_full_in_seconds": _or_never(watch.history.disk_full_in_s()),
            "dead_letters_bytes": self.store.state.letter_bytes,
            "dead_letters_bytes_max": self.store.state.letter_limits.bytes_max,
            "sink_accepted_points": count(lambda account: account.accepted),
            "sink_confirmed_points": count(lambda account: account.delivered),
            "sink_parked_points": each(lambda sink: sink.parked_points),
            "sink_dead_letters": count(lambda account: account.parked),
            "sink_letters_without_room": each(lambda sink: float(sink.no_room)),
            "sink_given_up_points": count(lambda account: account.given_up),
            "sink_skipped_points": each(lambda sink: sink.cursor.skipped),
            "sink_expired_points": each(lambda sink: sink.cursor.expired),
            "sink_waiting_points": count(lambda account: account.waiting),
            "sink_lag_seconds": each(self._lag_s),
            "sink_catch_up_seconds": each(lambda sink: _or_never(self._catch_up_s(sink))),
            "sink_unaccounted_points": count(lambda account: account.unaccounted),
            "sink_rejected_writes": each(lambda sink: sink.rejected_writes),
            "sink_retried_writes": each(lambda sink: sink.retried_writes),
            "sink_in_flight_writes": each(lambda sink: sink.in_flight),
            "sink_state": {
                (sink.name, state.value): float(sink.state is state) for sink in sinks for state in SinkState
            },
            "sink_state_since_seconds": each(lambda sink: sink.since_ns / 1e9),
            "build_info": {(__version__,): 1},
        }

    def _oldest_waiting_s(self, sinks: Sequence[SinkStatus]) -> float:
        return max(map(self._lag_s, holding(sinks)), default=0.0)

    def _lag_s(self, sink: SinkStatus) -> float:
        return self.watch.lag_s.get(sink.name, 0.0) if self._waits(sink) else 0.0

    def _catch_up_s(self, sink: SinkStatus) -> float | None:
        if not self._waits(sink):
            return 0.0
        # A sink that takes nothing now has no rate that an estimate could follow from.
        return self.watch.history.catch_up_s(sink.name) if sink.state in _TAKING else None

    def _waits(self, sink: SinkStatus) -> bool:
        """Whether anything waits for a sink at this very moment, whatever the last look saw."""
        return self.store.wal.last_seq > sink.cursor.seq

    def _full_in_s(self) -> float | None:
        return 0.0 if isinstance(self.writer.refusal(), WalFull) else self.watch.history.full_in_s()

    # -- the account and the verdict -------------------------------------------------------------------

    def accounts(self, sinks: Sequence[SinkStatus]) -> dict[str, Account]:
        """The account of each sink, all by the same count of accepted points, taken after the cursors."""
        total = self.store.wal.points_total
        return {sink.name: account_of(sink.cursor, total) for sink in sinks}

    def verdict(self, sinks: Sequence[SinkStatus], accounts: Mapping[str, Account]) -> Verdict:
        """How the node is, from the same figures that the documents show."""
        now_s, given_up_ns = self.now().timestamp(), self.watch.given_up_ns
        accepted, refused = self.watch.requests.counts()
        return verdict(
            Facts(
                reasons=self.not_ready(),
                sinks=[
                    SinkFacts(
                        sink.name,
                        sink.state.value,
                        max(0.0, now_s - sink.since_ns / 1e9),
                        self._lag_s(sink),
                        self._catch_up_s(sink),
                        accounts[sink.name],
                        sink.no_room,
                    )
                    for sink in sinks
                ],
                full_in_s=self._full_in_s(),
                disk_full_in_s=self.watch.history.disk_full_in_s(),
                damaged_files=len(self.store.wal.damaged),
                missing_points=sum(gap.points for gap in self.store.wal.gaps())
                + sum(lost.points or 1 for lost in self.store.missing),
                refused=refused,
                accepted=accepted,
                window_s=WINDOW_S,
                odd_times=self.watch.odd_times(),
                given_up_s=max(0.0, now_s - given_up_ns / 1e9) if given_up_ns else None,
            )
        )

    # -- /readyz ---------------------------------------------------------------------------------------

    def readiness(self) -> dict[str, object]:
        """What `/readyz` shows beside whether the node is ready: each sink by its name, the account, the verdict."""
        sinks = self.statuses()
        accounts = self.accounts(sinks)
        found = self.verdict(sinks, accounts)
        details: dict[str, dict[str, object]] = {}
        for status in sinks:
            details[status.name] = {
                "state": status.state.value,
                "waiting_points": accounts[status.name].waiting,
                "parked_points": accounts[status.name].parked,
            }
            if condition_of(status.state.value, no_room=status.no_room).level is not Level.GOOD:
                details[status.name] |= {"since": _iso(status.since_ns), "reason": status.last_error}
        return {
            "sinks": details,
            "account": _accounts_json(accounts),
            "verdict": {"level": found.level.word, "sentence": found.sentence},
        }

    # -- /status.json ----------------------------------------------------------------------------------

    def status(self) -> dict[str, object]:
        """What the status page shows of now."""
        watch, sinks = self.watch, self.statuses()
        accounts = self.accounts(sinks)
        reasons = list(self.not_ready())
        rates, commits = watch.history.rates(), watch.history.commits()
        return {
            "version": __version__,
            "now": self.now().isoformat(timespec="seconds"),
            "started": self.started.isoformat(timespec="seconds"),
            "wal_id": str(self.store.state.wal_id),
            "data_dir": self.settings.server.data_dir,
            "verdict": self.verdict(sinks, accounts).as_json(),
            "account": _accounts_json(accounts),
            "ready": not reasons,
            "reasons": reasons,
            "rates": {
                "requests_per_s": _rounded(rates.requests_per_s),
                "points_per_s": _rounded(rates.points_per_s),
                "bytes_per_s": _rounded(rates.bytes_per_s),
            },
            "append": {"p50_ms": _ms(commits.p50_s), "p99_ms": _ms(commits.p99_s)},
            "commit": {
                # Deprecated, the same as in `append`: these are no durations of commits.
                "p50_ms": _ms(commits.p50_s),
                "p99_ms": _ms(commits.p99_s),
                "per_s": _rounded(commits.per_s),
                "entries_per_commit": _rounded(commits.entries_per_commit),
            },
            "wal": self._wal(sinks),
            "dead_letters_bytes": self.store.state.letter_bytes,
            "dead_letters_bytes_max": self.store.state.letter_limits.bytes_max,
            "sinks": [self._sink(sink, accounts[sink.name]) for sink in sinks],
            "errors": [
                {"at": _iso(seen.at_ns), "source": seen.source, "message": seen.message}
                for seen in watch.errors.listed()
            ],
            "events": self._events(),
            "odd_times": odd_times_json(watch.odd_times()),
            "dead_letters": [
                {
                    "sink": group.sink,
                    "reason": group.reason,
                    "points": group.points,
                    "last_at": _iso(group.last_ns),
                }
                for group in watch.letters[:_LETTER_GROUPS_MAX]
            ],
        }

    def _events(self) -> list[dict[str, object]]:
        """What went wrong and what operators did, the newest first."""
        kinds = (("error", self.watch.errors), ("operator", self.watch.acts))
        seen = [(kind, event) for kind, events in kinds for event in events.listed()]
        seen.sort(key=lambda each: each[1].at_ns, reverse=True)
        return [
            {"at": _iso(event.at_ns), "kind": kind, "source": event.source, "message": event.message}
            for kind, event in seen[: 2 * ERRORS_MAX]
        ]

    def _wal(self, sinks: Sequence[SinkStatus]) -> dict[str, object]:
        wal, limits = self.store.wal, self.settings.wal
        waits = any(map(self._waits, holding(sinks)))
        return {
            "bytes": wal.bytes,
            "bytes_max": limits.wal_bytes_max,
            "disk_free_bytes": self.watch.disk_free_bytes,
            "disk_free_bytes_min": limits.free_disk_bytes_min,
            "segments": len(wal.segments()),
            "last_seq": wal.last_seq,
            "points_accepted": wal.points_total,
            "points_kept": wal.points_total - wal.first_points_before,
            "oldest_waiting_s": _rounded(self._oldest_waiting_s(sinks)) if waits else None,
            "full_in_s": _rounded(self._full_in_s()),
            "disk_full_in_s": _rounded(self.watch.history.disk_full_in_s()),
            "damaged_files": len(wal.damaged),
        }

    def _sink(self, sink: SinkStatus, account: Account) -> dict[str, object]:
        condition = condition_of(sink.state.value, no_room=sink.no_room)
        return {
            "name": sink.name,
            "state": sink.state.value,
            "level": condition.level.word,
            "meaning": condition.meaning,
            "required": sink.required,
            "since": _iso(sink.since_ns),
            "last_error": sink.last_error,
            "last_error_at": _iso(sink.last_error_ns) if sink.last_error_ns else None,
            "no_room_for_letters": sink.no_room,
            "waiting_points": account.waiting,
            "lag_s": _rounded(self._lag_s(sink)),
            "confirmed_points": sink.cursor.confirmed,
            "confirmed_per_s": _rounded(self.watch.history.confirmed_per_s(sink.name)),
            "dead_letters": account.parked,
            "parked_points": account.parked,  # deprecated: the metric by this name counts since the start
            "given_up_points": account.given_up,
            "skipped_points": sink.cursor.skipped,
            "expired_points": sink.cursor.expired,
            "unaccounted_points": sink.cursor.unaccounted,
            "retried_writes": sink.retried_writes,
            "in_flight": sink.in_flight,
            "catch_up_s": _rounded(self._catch_up_s(sink)),
        }

    # -- /history.json ---------------------------------------------------------------------------------

    def history(self) -> dict[str, object]:
        """What the status page plots of the last hour."""
        history = self.watch.history
        steps = history.steps
        end = self.now() - timedelta(seconds=max(0.0, self.monotonic_s() - history.end_s))
        known: dict[str, list[tuple[int | None, float | None]]] = {
            name: [step.sinks.get(name, (None, None)) for step in steps] for name in history.sink_names()
        }
        return {
            "end": end.isoformat(timespec="seconds"),
            "step_s": STEP_S,
            "points_per_s": [_rounded(step.points_per_s) for step in steps],
            "wal_bytes": [step.wal_bytes for step in steps],
            "append_p99_ms": [_ms(step.append_p99_s) for step in steps],
            "sinks": {
                name: {
                    "waiting_points": [waiting for waiting, _ in values],
                    "confirmed_per_s": [_rounded(confirmed) for _, confirmed in values],
                }
                for name, values in known.items()
            },
        }


def odd_times_json(found: Sequence[OddTimes]) -> list[dict[str, object]]:
    """As `/status.json` shows points with implausible times, and as the control socket reports them."""
    return [
        {
            "source": odd.source,
            "oddity": odd.oddity,
            "looks_like": odd.looks_like or None,
            "points": odd.points,
            "says": odd.says,
        }
        for odd in found[:_ODD_SOURCES_MAX]
    ]


def _accounts_json(accounts: Mapping[str, Account]) -> dict[str, dict[str, int]]:
    return {name: account.as_json() for name, account in accounts.items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _or_never(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds


def _iso(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec="seconds")
