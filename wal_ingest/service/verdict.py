"""How the node is, in one sentence, how bad that is, and what to do about it. Pure: facts in, words out.

Invariants:

* It is good only when all of this holds: points are taken, in the last minutes no request was refused and no point
  had an implausible time, no sink is in trouble or absent, no point is parked, no point was given up in the last day,
  nothing is damaged or unaccounted for.
* The sentence says "everything delivered" only when nothing waits, is parked or was ever given up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from wal_ingest.service.recent import OddTimes
from wal_ingest.service.remedies import Level, Remedy, condition_of
from wal_ingest.wal.accounts import Account

# What was given up stays in the account for ever. For so long after it grew the verdict is "attention": long enough for
# the next shift to see it, short enough not to hide what comes after it.
GIVEN_UP_S = 86_400.0

# A sink further behind than this is worth a clause; so is a limit that is nearer than this, and bad below the third.
LAG_S_MIN = 60.0
FULL_S_MAX = 3600.0
FULL_S_BAD = 900.0

# From this share on, refused requests are bad: most senders are losing points.
REFUSED_PART_BAD = 0.5
# Below this share, requests that were answered "come back later" are a peak: the senders repeat them.
LATER_PART_MIN = 0.01
_LATER = (429, 503)

# What a refusal means, by its HTTP status; others are shown by their number alone.
_REFUSED = {
    400: "not understood",
    401: "without a valid token",
    403: "from where it may not come",
    404: "to no endpoint",
    405: "with a wrong method",
    408: "too slow",
    411: "without a length",
    413: "too large",
    415: "in an unknown format or encoding",
    429: "too many",
    500: "failed by an error of ours",
    503: "to be repeated later",
}


@dataclass(frozen=True, slots=True)
class SinkFacts:
    """A sink: its state and for how long in seconds, its lag, its estimate (None: none), its account.

    `no_room` says that it is holding because its dead letters have no room.
    """

    name: str
    state: str
    state_s: float
    lag_s: float
    catch_up_s: float | None
    account: Account
    no_room: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the verdict follows from.

    `reasons` is why nothing is taken, empty when the node is ready. `refused` counts the write requests of the last
    `window_s` seconds that were refused, by HTTP status, `accepted` those that were taken. `given_up_s` is how long ago
    points were given up, None when never. `odd_times` are the points of the last `window_s` seconds with implausible
    times. `full_in_s` and `disk_full_in_s` are None without a trend.
    """

    reasons: Sequence[str] = ()
    sinks: Sequence[SinkFacts] = ()
    full_in_s: float | None = None
    disk_full_in_s: float | None = None
    damaged_files: int = 0
    missing_points: int = 0
    refused: Mapping[int, int] = field(default_factory=dict)
    accepted: int = 0
    window_s: float = 300.0
    given_up_s: float | None = None
    odd_times: Sequence[OddTimes] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """The level, the sentence, what to do, and a `key` that changes with the state and not with every figure."""

    level: Level
    sentence: str
    remedies: tuple[Remedy, ...]
    key: str

    def as_json(self) -> dict[str, object]:
        """As `/status.json` shows it."""
        return {
            "level": self.level.word,
            "sentence": self.sentence,
            "remedies": [{"says": remedy.says, "run": remedy.run} for remedy in self.remedies],
            "key": self.key,
        }


@dataclass(frozen=True, slots=True)
class _Finding:
    level: Level
    says: str
    key: str
    remedy: Remedy | None = None
    # Takes the place of "Taking points".
    head: bool = False
    # Says already how delivery goes.
    delivery: bool = False


def verdict(facts: Facts) -> Verdict:
    """How it is, by the worst of what there is to say."""
    findings = [
        *_not_ready(facts),
        *_refused(facts),
        *_odd_times(facts),
        *_troubled(facts),
        *_filling(facts),
        *_damage(facts),
        *_not_delivered(facts),
    ]
    head = next((finding.says for finding in findings if finding.head), "Taking points")
    clauses = [finding.says for finding in findings if not finding.head]
    if not any(finding.delivery for finding in findings):
        clauses.append(_delivery(facts))
    return Verdict(
        level=max((finding.level for finding in findings), default=Level.GOOD),
        sentence="; ".join([head, *clauses]) + _calm(facts, findings),
        remedies=tuple(finding.remedy for finding in findings if finding.remedy is not None),
        key="|".join(finding.key for finding in findings),
    )


def _not_ready(facts: Facts) -> Iterator[_Finding]:
    if facts.reasons:
        reasons = "; ".join(facts.reasons)
        yield _Finding(
            Level.BAD,
            f"NOT taking points: {reasons}",
            f"refusing {reasons}",
            Remedy("Senders are to come back later. What was accepted is kept, and delivered."),
            head=True,
        )


def _refused(facts: Facts) -> Iterator[_Finding]:
    answered = facts.accepted + sum(facts.refused.values())
    told = {
        status: count
        for status, count in facts.refused.items()
        if count and (status not in _LATER or count >= LATER_PART_MIN * answered)
    }
    if not told:
        return
    count = sum(told.values())
    reasons = ", ".join(f"{told[status]:,} {_refusal_text(status)}" for status in sorted(told))
    everything = not facts.accepted and not facts.reasons
    whole = "ALL" if everything else f"{count:,} of"
    yield _Finding(
        Level.BAD if count >= REFUSED_PART_BAD * answered else Level.ATTENTION,
        f"{'REFUSING' if everything else 'refused'} {whole} {answered:,} requests of the last "
        f"{duration_text(facts.window_s)}: {reasons}",
        f"refused {sorted(told)}",
        Remedy(
            "The node's log has each refusal with its reason and its source:",
            "journalctl -u wal-ingest -n 50",
        ),
        head=everything,
    )


def _odd_times(facts: Facts) -> Iterator[_Finding]:
    if not facts.odd_times:
        return
    first, *others = facts.odd_times
    more = f", and of {len(others):,} more source{'' if len(others) == 1 else 's'}" if others else ""
    yield _Finding(
        Level.ATTENTION,
        f"{points_text(first.points)} of the last {duration_text(facts.window_s)} {first.says}{more}",
        "odd times",
        Remedy(
            "Have the sender name its unit (precision=s, ms, us or ns). They are stored as they came; a database may "
            "drop such times without a word. To refuse them, set server.time_window_past_s."
        ),
    )


def _refusal_text(status: int) -> str:
    return f"{_REFUSED[status]} ({status})" if status in _REFUSED else f"with {status}"


def _troubled(facts: Facts) -> Iterator[_Finding]:
    for sink in facts.sinks:
        condition = condition_of(sink.state, no_room=sink.no_room)
        waiting = sink.account.waiting
        if condition.level is not Level.GOOD:
            waits = f", {points_text(waiting)} wait{'s' if waiting == 1 else ''}" if waiting else ""
            yield _Finding(
                condition.level,
                f"{sink.name} {condition.says} for {duration_text(sink.state_s)}{waits}",
                f"{sink.name} {sink.state}{' no room' if sink.no_room else ''}",
                condition.remedy.of(sink.name) if condition.remedy else None,
                delivery=True,
            )
        elif sink.lag_s > LAG_S_MIN:
            falls = sink.catch_up_s is None
            ahead = "and falls further" if falls else f"caught up in {duration_text(sink.catch_up_s or 0.0)}"
            yield _Finding(
                Level.ATTENTION if falls else Level.GOOD,
                f"{sink.name} lags {duration_text(sink.lag_s)}, {ahead}",
                f"{sink.name} lags",
                Remedy("See how fast it takes points:", "wal-ingest sink status") if falls else None,
                delivery=True,
            )


def _filling(facts: Facts) -> Iterator[_Finding]:
    for what, left_s in (("the WAL", facts.full_in_s), ("the disk", facts.disk_full_in_s)):
        if facts.reasons or left_s is None or left_s > FULL_S_MAX:
            continue
        yield _Finding(
            Level.BAD if left_s < FULL_S_BAD else Level.ATTENTION,
            f"{what} is full in {duration_text(left_s)}",
            f"{what} fills",
        )


def _damage(facts: Facts) -> Iterator[_Finding]:
    look = Remedy("See what is lost:", "wal-ingest wal verify")
    if facts.damaged_files:
        files = f"{facts.damaged_files:,} damaged file{'' if facts.damaged_files == 1 else 's'}"
        yield _Finding(Level.BAD, f"{files} set aside", "damaged", look)
    if facts.missing_points:
        yield _Finding(Level.BAD, f"{points_text(facts.missing_points)} missing in the log", "missing", look)
    for sink in facts.sinks:
        if sink.account.unaccounted:
            yield _Finding(
                Level.BAD,
                f"{points_text(sink.account.unaccounted)} of {sink.name} unaccounted for",
                f"{sink.name} unaccounted",
                Remedy("That is a bug: report it."),
            )


def _not_delivered(facts: Facts) -> Iterator[_Finding]:
    for sink in facts.sinks:
        if sink.account.parked:
            remedy = Remedy(
                "See why, then retry or drop them:", f"wal-ingest dead-letters list --sink {sink.name}"
            )
            yield _Finding(
                Level.ATTENTION,
                f"{points_text(sink.account.parked)} of {sink.name} parked",
                f"{sink.name} parked",
                None if sink.no_room else remedy,  # said already
            )
    recent = facts.given_up_s is not None and facts.given_up_s < GIVEN_UP_S
    for sink in facts.sinks:
        if sink.account.given_up:
            yield _Finding(
                Level.ATTENTION if recent else Level.GOOD,
                f"{points_text(sink.account.given_up)} of {sink.name} given up",
                f"{sink.name} given up",
            )


def _delivery(facts: Facts) -> str:
    """How delivery goes when no sink is in trouble."""
    if not facts.sinks:
        return "no sink is configured"
    if any(sink.account.waiting for sink in facts.sinks):
        return "delivery keeps up"
    whole = all(sink.account.delivered == sink.account.accepted for sink in facts.sinks)
    return "everything delivered" if whole else "the rest is delivered"


def _calm(facts: Facts, findings: Sequence[_Finding]) -> str:
    """The words that let a person go back to sleep; only when they are true."""
    lost = facts.damaged_files or facts.missing_points or facts.refused or facts.odd_times
    lost = lost or any(sink.account.given_up or sink.account.unaccounted for sink in facts.sinks)
    if lost or not any(finding.delivery or finding.head for finding in findings):
        return ""
    return "; nothing is lost" if len(findings) > 1 else ", nothing is lost"


def points_text(points: int) -> str:
    """1 point, 3,000 points."""
    return f"{points:,} point{'' if points == 1 else 's'}"


def duration_text(seconds: float) -> str:
    """In the two largest units that matter: 42 s, 4 min 10 s, 3 h 12 min, 2 d 4 h; 0.4 s below ten seconds."""
    if seconds < 9.95:
        return f"{round(max(0.0, seconds), 1):g} s"
    whole = round(seconds)
    for (name, size), (below, below_size) in (
        (("d", 86_400), ("h", 3600)),
        (("h", 3600), ("min", 60)),
        (("min", 60), ("s", 1)),
    ):
        if whole >= size:
            rest = whole % size // below_size
            return f"{whole // size} {name}" + (f" {rest} {below}" if rest else "")
    return f"{whole} s"
