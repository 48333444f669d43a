"""The real store and the real deliveries under a random hand, compared with the model after each step.

Nothing here is left to chance that is not Hypothesis' own: time is virtual, threads are none, and a kill is a copy of
the directory at a chosen moment, from which everything goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.flusher.fake_sink import FakeSink
from tests.model.inline import deliver, holding_seq, read_everything, read_setting_aside
from tests.model.model import Found, Model
from tests.model.moments import Killed, Moments
from tests.wal.factories import Clock
from wal_ingest.flusher.batches import Batch
from wal_ingest.flusher.outcome import Misconfigured, Outcome, Rejected, TooLarge, Unavailable
from wal_ingest.settings import WalSettings
from wal_ingest.wal.entry import Destination, Mark, NewEntry
from wal_ingest.wal.letters import id_of
from wal_ingest.wal.required import Presence
from wal_ingest.wal.state import STATE_NAME, read_state
from wal_ingest.wal.store import Store
from wal_ingest.wal.streams import STORED_MAX, Stored

PAGE = 4096
CLIENTS = ("web-1", "web-2", "web-3", "web-4")
STREAMS_MAX = 3
SETTINGS = WalSettings(
    segment_bytes_max=96 * 1024, segment_s_max=30.0, free_disk_bytes_min=0, streams_max=STREAMS_MAX
)
_MEMORY = Path("/dev/shm")
BAD = b"bad=1i"

# What a sink says in turn; when it has said all of it, it refuses the bad points and takes the rest.
SAYINGS: dict[str, Callable[[], Outcome]] = {
    "unavailable": lambda: Unavailable("away"),
    "come back in 2 s": lambda: Unavailable("busy", 503, retry_after_s=2.0),
    "fails": lambda: Unavailable("an error", 500, suspect=True),
    "too large": lambda: TooLarge("too much"),
    "no permission": lambda: Misconfigured("no permission", 401),
    "refused": lambda: Rejected("bad points", 400),
}
scripts = st.lists(st.sampled_from([*SAYINGS, "takes it"]), max_size=12)
clients = st.sampled_from(["", "", *CLIENTS])
entries = st.tuples(st.integers(1, 45), st.integers(0, 5), st.sampled_from([0, 0, 40, 900]))

DAMAGE: dict[str, Callable[[Path, int], object]] = {
    "emptied": lambda path, _at: path.write_bytes(b""),
    "cut": lambda path, at: path.write_bytes(path.read_bytes()[: at % path.stat().st_size]),
    "page zeroed": lambda path, at: _overwrite(path, at % path.stat().st_size // PAGE * PAGE, bytes(PAGE)),
    "byte changed": lambda path, at: _overwrite(path, at % path.stat().st_size, None),
}


def _overwrite(path: Path, at: int, with_what: bytes | None) -> None:
    content = bytearray(path.read_bytes())
    if with_what is None:
        content[at] ^= 0xFF
    else:
        content[at : at + len(with_what)] = with_what
    path.write_bytes(content)


class ScriptedSink(FakeSink):
    """Says what its script says, then what it thinks. What it has outlives every process."""

    def __init__(self, name: str, model: Model, moments: Moments) -> None:
        super().__init__(in_flight_max=2, required=model.required[name])
        self.name = name
        self.script: list[str] = []
        self._had = model.had.setdefault(name, set())
        self._moments = moments
        self.answer = self._answer

    def _answer(self, lines: list[bytes]) -> Outcome | None:
        said = self.script.pop(0) if self.script else "takes it"
        if said in SAYINGS:
            return SAYINGS[said]()
        return Rejected("bad points", 400) if any(BAD in line for line in lines) else None

    async def write(self, batch: Batch) -> Outcome:
        self._moments.moment()
        outcome = await super().write(batch)
        if not self._moments.dead:
            self._had.update(self.confirmed)
        self.confirmed.clear()
        self._moments.moment()
        return outcome


class StoreMachine(RuleBasedStateMachine):
    """One data directory through many lives."""

    def __init__(self) -> None:
        super().__init__()
        logging.disable(logging.CRITICAL)
        self.root = Path(tempfile.mkdtemp(dir=_MEMORY if _MEMORY.is_dir() else None))
        self.clock = Clock()
        self.model = Model()
        self.droppable_seq = 0
        self.moments = Moments()
        self.sinks: list[ScriptedSink] = []
        self.lives = 0
        self.number = 0
        self.absent: set[str] = set()
        self.damaged: dict[str, set[int]] = {}
        self.senders: set[str] = set()
        self.data_dir = self.root / "0"
        self.store: Store | None = None

    @initialize(first=st.booleans(), second=st.booleans())
    def begin(self, first: bool, second: bool) -> None:
        self.model.required = {"one": first, "two": second}
        self.sinks = [ScriptedSink(name, self.model, self.moments) for name in self.model.required]
        self.moments.born(self.data_dir, self.root / "1")
        self._live(lambda: None)

    def teardown(self) -> None:
        try:
            self.moments.kill_after(None)
            if self.store is not None:
                self.check()
                self.store.close()
        finally:
            # Also where a mutant was found: its logging would be silent, and its folder in memory, for the whole run.
            self.moments.close()
            logging.disable(logging.NOTSET)
            shutil.rmtree(self.root)

    # -- lives -----------------------------------------------------------------------------------------

    def _live(self, act: Callable[[], None]) -> None:
        """Does something in the present life. When the process is killed in it, the next one finds the copy."""
        try:
            if self.store is None:
                self._open()
            act()
        except BaseException:
            # Not `Killed` alone: it may be in a group, or another error of a process that is dead already.
            if not self.moments.dead:
                raise
            self._next_life()
            self._live(lambda: None)

    def _open(self) -> None:
        self.store = Store(self.data_dir, SETTINGS, now_ns=self.clock)
        # As the service does.
        present = {sink.name: Presence(sink.required) for sink in self._present()}
        self.store.note_sinks(present, standby_names=frozenset())
        for sink in self._present():
            if self.store.state.cursor(sink.name) is None:
                self.store.commit_cursor(sink.name, self.store.cursor(sink.name))

    def _present(self) -> list[ScriptedSink]:
        """The sinks that the settings name."""
        return [sink for sink in self.sinks if sink.name not in self.absent]

    def _next_life(self) -> None:
        self._abandon()
        shutil.rmtree(self.data_dir)
        self.lives += 1
        self.data_dir = self.root / str(self.lives)
        self.moments.born(self.data_dir, self.root / str(self.lives + 1))

    def _abandon(self) -> None:
        store, self.store = self.store, None
        if store is None:
            return
        if self.moments.dead:
            with contextlib.suppress(Killed):  # a dead process writes nothing any more
                store.close()
        else:
            store.close()

    @property
    def alive(self) -> Store:
        assert self.store is not None
        return self.store

    # -- rules -----------------------------------------------------------------------------------------

    @rule(
        groups=st.lists(st.tuples(clients, st.lists(entries, min_size=1, max_size=3)), min_size=1, max_size=3)
    )
    def append(self, groups: list[tuple[str, list[tuple[int, int, int]]]]) -> None:
        made = [self._frame(client_id, group) for client_id, group in groups]

        def act() -> None:
            before = self.alive.wal.last_seq
            for group, appended in zip(made, self.alive.wal.commit(made), strict=True):
                assert appended.first_seq > before
                assert appended.last_seq - appended.first_seq + 1 == len(group)
                before = appended.last_seq
                self.model.accept(appended.first_seq, [entry.lines for entry in group])

        self._live(act)

    def _frame(self, client_id: str, group: list[tuple[int, int, int]]) -> list[NewEntry]:
        """An append: a frame of a client's stream, or of nobody's."""
        made = [self._entry(*drawn) for drawn in group]
        mark = Mark(client_id, self.number, self.number % 7) if client_id else None
        if mark is not None:
            self.senders.add(client_id)
        return [dataclasses.replace(entry, mark=mark) for entry in made]

    def _entry(self, points: int, bad: int, filler: int) -> NewEntry:
        self.number += 1
        noise = (
            b",t=" + hashlib.shake_128(b"%d" % self.number).hexdigest(filler // 2).encode() if filler else b""
        )
        lines = b"".join(
            b"m,e=%d%s %s,n=%di 1\n" % (self.number, noise, BAD if n < bad else b"ok=1i", n)
            for n in range(points)
        )
        return NewEntry(lines, points, self.clock(), "", Destination("", "ab"[self.number % 2]))

    @rule(
        first=scripts,
        second=scripts,
        virtual_s=st.sampled_from([0.05, 0.4, 3.0, 60.0]),
        truncating=st.booleans(),
    )
    def deliver(self, first: list[str], second: list[str], virtual_s: float, truncating: bool) -> None:
        for sink, script in zip(self.sinks, (first, second), strict=True):
            sink.script = list(script)

        def act() -> None:
            store = self.alive

            def confirmed(_name: str) -> None:
                if truncating:
                    self._truncate(store)

            deliver(
                store,
                self._present(),
                virtual_s=virtual_s,
                now_ns=self.clock,
                seed=self.number,
                confirmed=confirmed,
            )

        self._live(act)

    @rule()
    def truncate(self) -> None:
        self._live(lambda: self._truncate(self.alive))

    def _truncate(self, store: Store) -> None:
        store.wal.truncate(holding_seq(store, self._present()))

    @rule()
    def seal(self) -> None:
        self._live(lambda: self.alive.wal.seal())

    @rule(seconds=st.sampled_from([-100.0, 0.5, 29.0, 31.0]))
    def move_clock(self, seconds: float) -> None:
        self.clock.advance_s(seconds)
        self._live(lambda: self.alive.wal.seal_if_due())

    # -- what operators decide, between two deliveries ---------------------------------------------------

    @rule(which=st.integers(0, 1), far=st.integers(0, 30))
    def skip(self, which: int, far: int) -> None:
        name = self.sinks[which].name

        def act() -> None:
            store = self.alive
            before = store.cursor(name)
            through_seq = before.seq + far
            # Decided before it is done: where the process is killed in it, either may be on disk.
            self.model.expired.setdefault(name, set()).update(range(before.seq + 1, through_seq + 1))
            cursor = store.expire(
                name,
                through_seq,
                read=lambda after_seq: read_setting_aside(store, after_seq, bytes_max=1),
            )
            assert cursor.seq >= min(through_seq, store.wal.last_seq)
            assert cursor.expired - before.expired == cursor.settled - before.settled

        self._live(act)

    @rule(which=st.integers(0, 1), some=st.integers(1, 5), retried=st.booleans())
    def settle_letters(self, which: int, some: int, retried: bool) -> None:
        sink = self.sinks[which]

        def act() -> None:
            state = self.alive.state
            letters = list(state.dead_letters(sink.name))[::some]
            lines = {letter.line for letter in letters}
            # The sink has them before they are letters no more; a drop is decided before it is done.
            held = self.model.had[sink.name] if retried else self.model.dropped.setdefault(sink.name, set())
            held |= lines
            removed = state.remove_letters(sink.name, [id_of(each) for each in letters], written=retried)
            assert removed == len(letters)

        self._live(act)

    @rule()
    def stop_and_start(self) -> None:
        self._live(self._abandon)
        self._live(lambda: None)

    @rule(which=st.integers(0, 1))
    def change_settings(self, which: int) -> None:
        """A start whose settings lack a sink, or name it again."""
        name = self.sinks[which].name
        self._live(self._abandon)
        if self.store is not None:
            return  # killed on the way: the life that followed began with the settings as they were
        if name in self.absent:
            self.absent.discard(name)
        elif not self.absent:  # one sink at least is always on
            self.absent.add(name)
            self.model.left.add(name)
        self._live(lambda: None)

    @rule()
    def kill_now(self) -> None:
        self._live(self.moments.die)

    @rule(moments=st.integers(1, 25))
    def kill_soon(self, moments: int) -> None:
        self.moments.kill_after(moments)

    @rule(which=st.integers(0, 100), what=st.sampled_from(sorted(DAMAGE)), at=st.integers(0, 1 << 20))
    def damage(self, which: int, what: str, at: int) -> None:
        segments = [segment for segment in self.alive.wal.segments() if segment.last_seq >= segment.first_seq]
        if not segments:
            return
        segment = segments[which % len(segments)]
        self._live(self._abandon)
        if self.store is not None:
            return  # killed on the way: the segments may be others now
        self.damaged[segment.path.name] = set(range(segment.first_seq, segment.last_seq + 1))
        DAMAGE[what](self.data_dir / "wal" / segment.path.name, at)
        self._live(lambda: None)

    # -- what must hold after each of them -------------------------------------------------------------

    @invariant()
    def check(self) -> None:
        if self.store is None:
            return
        kept: dict[int, bytes] = {}
        self._live(lambda: kept.update(read_everything(self.alive)))
        self._live(lambda: kept.update(read_everything(self.alive)))  # where the first look was killed
        for path in (self.data_dir / "wal" / "damaged").glob("*.lmdb*"):
            name = path.name[: len("00000000000000000001.lmdb")]
            assert name in self.damaged, f"{name} is set aside, and nobody had damaged it"
            self.model.given_up |= self.damaged[name]
        on_disk = read_state(self.data_dir / STATE_NAME)
        letters = {sink.name: list(self.alive.state.dead_letters(sink.name)) for sink in self.sinks}
        found = Found(
            kept=kept,
            cursors={name: cursor.seq for name, cursor in on_disk.cursors.items()},
            parked={name: {letter.line for letter in each} for name, each in letters.items()},
        )
        assert self.model.broken(found) == []
        assert on_disk.cursors == self.alive.state.cursors()
        for name, cursor in on_disk.cursors.items():
            assert cursor.unaccounted == 0
            assert cursor.parked == len(letters[name])
            assert all(letter.reason for letter in letters[name])
            assert cursor.seq <= self.alive.wal.last_seq
            assert cursor.points <= self.alive.wal.points_total
        self._check_streams(set(kept))

    @rule()
    def save_positions(self) -> None:
        self._live(lambda: self._saved())

    def _saved(self) -> None:
        assert self.alive.save_positions(self.clock())

    def _check_streams(self, kept: set[int]) -> None:
        """Of each stream just the frames are known that are in the log, and of those that are not, confirmed ones."""
        wal = self.alive.wal
        there: dict[str, set[Stored]] = {client_id: set() for client_id in CLIENTS}
        after_seq = 0
        while found := wal.read(after_seq, bytes_max=1 << 20):
            after_seq = found[-1].seq
            for mark, entries_of_it in itertools.groupby(found, key=lambda entry: entry.mark):
                if mark is not None:
                    parts = list(entries_of_it)
                    points = sum(entry.points for entry in parts)
                    there[mark.client_id].add(Stored(mark.number, parts[-1].seq, points, mark.crc))
        # An optional sink that is named again may be behind what went while it was not there.
        self.droppable_seq = max(self.droppable_seq, holding_seq(self.alive, self._present()))
        confirmed_seq = self.droppable_seq
        for client_id, frames in there.items():
            position = wal.positions.of(client_id)
            known = set() if position is None else set(position.stored)
            assert len(known) <= STORED_MAX
            assert {frame for frame in known if frame.seq in kept} <= frames
            # Three streams are remembered; which ones the table's own test says. One that had to go and came back is
            # known from there on, and one that had to go is not remembered again when those that drove it out are
            # set aside with their segment. Frames in a segment that was set aside need not be known, though they can
            # be read from there: their sender may send them again, which stores them twice and loses none.
            is_crowded = len(self.senders) > STREAMS_MAX
            is_known_in_part = is_crowded or len(known) == STORED_MAX
            lowest = min((frame.number for frame in known), default=0) if is_known_in_part else 0
            remembered = {
                frame for frame in frames if frame.number >= lowest and frame.seq not in self.model.given_up
            }
            may_be_out = len(wal.positions) == STREAMS_MAX or (is_crowded and bool(self.model.given_up))
            assert remembered <= known or (position is None and may_be_out)
            for frame in known - frames:
                assert frame.seq <= confirmed_seq
                assert frame.seq not in self.model.given_up
