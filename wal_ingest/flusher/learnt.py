"""What the sink's refusals taught: points that are written by themselves, because others like them were refused.

A point that is chosen so is only written separately; what becomes of it, the sink decides each time. So a
pattern that is wrong, or out of date, costs a write and loses nothing: it is forgotten as soon as the sink takes such
a point.
Pure; `now_s` is any clock that only goes forward, `now_ns` Unix time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from wal_ingest.flusher.batches import Batch, others, pick
from wal_ingest.flusher.outcome import BeyondRetention, Named
from wal_ingest.flusher.shapes import Shape, Shaped, selected, series_of, time_of

# How long a pattern is kept after the sink refused a point like it, and how many are.
LEARNT_S = 900.0
PATTERNS_MAX = 256


class Pattern(NamedTuple):
    """Points of a group that a sink refused: those with a field of a type, before a time, or of a shape."""

    group: Hashable
    hint: Named | BeyondRetention | Shaped


@dataclass(slots=True)
class _Known:
    """`proven` is whether a point like this was parked; without, it is set apart only to let the others pass."""

    reason: str
    status: int
    until_s: float
    learnt_ns: int
    proven: bool = True


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    """A pattern as it is kept with the cursor; a group is known by its words, as no two have the same."""

    group: str
    reason: str
    status: int
    learnt_ns: int
    measurement: str = ""
    field: str = ""
    given: str = ""
    before_ns: int | None = None
    shape: tuple[str, tuple[str, ...], tuple[tuple[str, str], ...]] | None = None
    proven: bool = True


class Learnt:
    """The patterns of one sink, the oldest forgotten first. `changed` says that `encode` gives something new.

    `version` grows with each new pattern, and `taught` is called.
    """

    def __init__(self, stored: str = "") -> None:
        self._known: OrderedDict[Pattern, _Known] = OrderedDict()
        self._stored: dict[str, list[_Stored]] = {}
        self._dismissed: OrderedDict[Pattern, float] = OrderedDict()
        self.changed = False
        self.version = 0
        self.taught: Callable[[], None] = lambda: None
        for each in _decoded(stored):
            self._stored.setdefault(each.group, []).append(each)

    def learn(
        self, pattern: Pattern, reason: str, status: int, *, now_s: float, now_ns: int, proven: bool = True
    ) -> None:
        """Remembers that the sink refused a point like this, in these words."""
        if isinstance(pattern.hint, Shaped) and self._dismissed.get(pattern, now_s) > now_s:
            return  # such points also pass: setting them apart would only delay the good ones
        if isinstance(pattern.hint, BeyondRetention) and self._renews_bound(
            pattern, now_s=now_s, now_ns=now_ns
        ):
            return
        before = self._known.get(pattern)
        proven = proven or (before is not None and before.proven)
        self.changed |= before is None or before.proven is not proven
        self._known[pattern] = _Known(reason, status, now_s + LEARNT_S, now_ns, proven)
        self._known.move_to_end(pattern)
        if len(self._known) > PATTERNS_MAX:
            self._known.popitem(last=False)
        if before is None:
            self.version += 1
            self.taught()

    def renew(self, pattern: Pattern, *, now_s: float) -> bool:
        """The sink refused such points again; false where that is not known yet."""
        known = self._known.get(pattern)
        if known is None:
            return False
        known.until_s = now_s + LEARNT_S
        return True

    def forget(self, pattern: Pattern, *, now_s: float) -> None:
        """The sink took a point like this."""
        if self._drop(pattern) and isinstance(pattern.hint, Shaped):
            self._dismissed[pattern] = now_s + LEARNT_S
            self._dismissed.move_to_end(pattern)
            if len(self._dismissed) > PATTERNS_MAX:
                self._dismissed.popitem(last=False)

    def _drop(self, pattern: Pattern) -> bool:
        known = self._known.pop(pattern, None) is not None
        self.changed |= known
        return known

    def proven(self, pattern: Pattern) -> tuple[str, int] | None:
        """The words and the status with which a point like this was parked, if one was."""
        known = self._known.get(pattern)
        return (known.reason, known.status) if known is not None and known.proven else None

    def reason(self, pattern: Pattern) -> tuple[str, int]:
        """The words and the status with which points like this were refused."""
        known = self._known[pattern]
        return known.reason, known.status

    def patterns(self, group: Hashable, *, now_s: float) -> list[Pattern]:
        """What is known of a group."""
        for each in self._stored.pop(str(group), ()):
            self._known.setdefault(
                Pattern(group, _hint_of(each)),
                _Known(each.reason, each.status, now_s + LEARNT_S, each.learnt_ns, each.proven),
            )
        for pattern in [each for each, known in self._known.items() if known.until_s <= now_s]:
            self._drop(pattern)
        return [pattern for pattern in self._known if pattern.group == group]

    def choose(
        self, lines: Sequence[bytes], patterns: Sequence[Pattern], *, now_ns: int
    ) -> dict[int, Pattern]:
        """The lines that patterns mean, by their place. Runs in a thread."""
        found: dict[int, Pattern] = {}
        for pattern in patterns:
            known = self._known.get(pattern)
            hint = pattern.hint
            if known is not None and isinstance(hint, BeyondRetention) and hint.before_ns is not None:
                hint = BeyondRetention(_moved(hint.before_ns, known, now_ns))
            for place in selected(lines, hint):
                found.setdefault(place, pattern)
        return found

    def cut(
        self, batch: Batch, patterns: Sequence[Pattern], now_ns: int
    ) -> tuple[list[tuple[Pattern, Batch]], Batch | None]:
        """The points that patterns mean, by their pattern, and the others; in one trip to a thread, as each costs."""
        lines = batch.split()
        chosen = self.choose(lines, patterns, now_ns=now_ns)
        if not chosen:
            return [], batch
        _add_repeated(lines, chosen)
        by_pattern: dict[Pattern, list[int]] = {}
        for place, pattern in sorted(chosen.items()):
            by_pattern.setdefault(pattern, []).append(place)
        rest = others(len(lines), chosen)
        apart = [(pattern, pick(batch, lines, places)) for pattern, places in by_pattern.items()]
        return apart, pick(batch, lines, rest) if rest else None

    def beyond(self, group: Hashable, lines: Sequence[bytes], *, now_ns: int) -> list[int]:
        """The places of the lines before the known bound of a group's retention, rising."""
        known = [
            each for each in self._known if each.group == group and isinstance(each.hint, BeyondRetention)
        ]
        return sorted(self.choose(lines, known, now_ns=now_ns))

    def is_newer_than(self, version: int) -> bool:
        """Whether something was learnt since."""
        return self.version != version

    def encode(self) -> str:
        """What is kept with the cursor."""
        self.changed = False
        known = [
            _Stored(
                str(group),
                each.reason,
                each.status,
                each.learnt_ns,
                *((hint.measurement, hint.field, hint.given) if isinstance(hint, Named) else ("", "", "")),
                before_ns=hint.before_ns if isinstance(hint, BeyondRetention) else None,
                shape=_as_text(hint.shape) if isinstance(hint, Shaped) else None,
                proven=each.proven,
            )
            for (group, hint), each in self._known.items()
        ]
        unread = [each for stored in self._stored.values() for each in stored]
        return msgspec.json.encode(known + unread).decode() if known or unread else ""

    def _renews_bound(self, pattern: Pattern, *, now_s: float, now_ns: int) -> bool:
        """Whether the known bound of a group is later than this one, which is dropped then; else the known one is."""
        hint = pattern.hint
        assert isinstance(hint, BeyondRetention)
        for other, known in list(self._known.items()):
            if other.group != pattern.group or not isinstance(other.hint, BeyondRetention):
                continue
            bound_ns, before_ns = other.hint.before_ns, hint.before_ns
            if (
                bound_ns is not None
                and before_ns is not None
                and _moved(bound_ns, known, now_ns) >= before_ns
            ):
                return self.renew(other, now_s=now_s)
            del self._known[other]
        return False


def _add_repeated(lines: Sequence[bytes], chosen: dict[int, Pattern]) -> None:
    """Adds what has the series and time of a line of a refused shape: the sink may take it, and keeps the last one.

    A line that was chosen for another cause is refused, or takes all of its time along.
    """
    shaped = {
        place: pattern.hint.shape for place, pattern in chosen.items() if isinstance(pattern.hint, Shaped)
    }
    # This looks at every line of every batch. Read are only those that begin and end as one of these: mostly none.
    measurements = tuple({shape.measurement for shape in shaped.values()})
    series = {lines[place].partition(b" ")[0] for place in shaped}
    times = {lines[place].rpartition(b" ")[2] for place in shaped}
    alike = [
        place
        for place, line in enumerate(lines)
        if line.startswith(measurements)
        and line.partition(b" ")[0] in series
        and line.rpartition(b" ")[2] in times
    ]
    if len(alike) == len(shaped):
        return
    pattern_of = {_point_of(lines[place]): chosen[place] for place in shaped}
    for place in alike:
        pattern = pattern_of.get(_point_of(lines[place]))
        if pattern is not None:
            chosen[place] = pattern


def _point_of(line: bytes) -> tuple[bytes, int]:
    return series_of(line), time_of(line)


def _moved(before_ns: int, known: _Known, now_ns: int) -> int:
    """Where a retention's bound is now: it moves with the clock."""
    return before_ns + max(0, now_ns - known.learnt_ns)


def _as_text(shape: Shape) -> tuple[str, tuple[str, ...], tuple[tuple[str, str], ...]]:
    fields = tuple((key.decode(), kind) for key, kind in shape.fields)
    return shape.measurement.decode(), tuple(map(bytes.decode, shape.tags)), fields


def _hint_of(stored: _Stored) -> Named | BeyondRetention | Shaped:
    if stored.shape is not None:
        measurement, tags, fields = stored.shape
        return Shaped(
            Shape(
                measurement.encode(),
                tuple(map(str.encode, tags)),
                tuple((key.encode(), kind) for key, kind in fields),
            )
        )
    if stored.before_ns is not None:
        return BeyondRetention(stored.before_ns)
    return Named(stored.measurement, field=stored.field, given=stored.given)


def _decoded(stored: str) -> list[_Stored]:
    """What was kept; nothing when it cannot be read: it is learnt again."""
    try:
        return msgspec.json.decode(stored, type=list[_Stored])[:PATTERNS_MAX] if stored else []
    except msgspec.DecodeError:
        return []
