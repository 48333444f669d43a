"""The life that is led under faults, the same each time, and what must hold afterwards.

`live` opens a data directory, commits, seals, delivers to the real archive and to a sink that refuses some
points, truncates, meets damage, recovers and goes on. It notes in its journal what the senders were told and what the
sink had. `check` opens the directory again, without faults, and compares.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.flusher.fake_sink import FakeSink
from tests.flusher.twins import run_inline
from tests.model.inline import deliver, holding_seq, read_everything
from wal_ingest.errors import DiskFull
from wal_ingest.flusher.batches import Batch
from wal_ingest.flusher.outcome import Outcome, Rejected
from wal_ingest.flusher.sinks import Sink
from wal_ingest.flusher.sinks.archive import ArchiveSink
from wal_ingest.settings import ArchiveSettings, WalSettings
from wal_ingest.wal.entry import NewEntry
from wal_ingest.wal.letters import id_of
from wal_ingest.wal.store import Store

SETTINGS = WalSettings(segment_bytes_max=1 << 20, free_disk_bytes_min=0)
NOW_NS = 1_763_800_000_000_000_000
HOUR_NS = 3_600_000_000_000
BAD = b"bad=1i"
# Longer than any retry of a delivery: what is not through by then will not be.
PATIENCE_S = 60.0


@dataclass
class Journal:
    """What outlives the process: what senders were told, what the other sink has, and what was damaged on purpose."""

    accepted: dict[int, bytes] = field(default_factory=dict)
    sink_has: set[bytes] = field(default_factory=set)
    damaged_files: dict[str, list[int]] = field(default_factory=dict)
    letters_lost: set[bytes] = field(default_factory=set)
    refused: set[bytes] = field(default_factory=set)


class PickySink(FakeSink):
    """A sink that refuses bad points and keeps the rest in the journal."""

    name = "picky"

    def __init__(self, journal: Journal) -> None:
        super().__init__(in_flight_max=2)
        self._journal = journal
        self.answer = lambda lines: (
            Rejected("a bad point", 400) if any(BAD in line for line in lines) else None
        )

    async def write(self, batch: Batch) -> Outcome:
        outcome = await super().write(batch)
        self._journal.sink_has.update(self.confirmed)
        return outcome


def entry(number: int, *, points: int, filler: int = 0, hour: int = 0) -> NewEntry:
    """An entry of distinct lines; every eleventh is bad."""
    tag = b",t=" + b"%x" % (number * 7919) * (filler // 4) if filler else b""
    lines = b"".join(
        b"m,e=%d%s %s,n=%di %d\n" % (number, tag, BAD if n % 11 == 5 else b"ok=1i", n, NOW_NS + n)
        for n in range(points)
    )
    return NewEntry(lines, points, NOW_NS + hour * HOUR_NS)


def sinks_of(data_dir: Path, journal: Journal) -> list[Sink]:
    """The real archive and the picky one."""
    return [ArchiveSink(data_dir, ArchiveSettings(), run_sync=run_inline), PickySink(journal)]


def open_store(data_dir: Path) -> Store:
    """The real thing."""
    return Store(data_dir, SETTINGS, now_ns=lambda: NOW_NS)


def commit(store: Store, journal: Journal, *groups: list[NewEntry]) -> None:
    """Commits, and only then notes what the senders are told; one that is sent away comes back once."""
    for _try in range(2):
        try:
            results = store.wal.commit(groups)
        except DiskFull:
            continue
        for group, appended in zip(groups, results, strict=True):
            seqs = range(appended.first_seq, appended.last_seq + 1)
            assert not journal.accepted.keys() & set(seqs), "a seq was handed out twice"
            journal.accepted |= {seq: entry.lines for seq, entry in zip(seqs, group, strict=True)}
        return
    journal.refused |= {entry.lines for group in groups for entry in group}


def deliver_and_truncate(data_dir: Path, store: Store, journal: Journal) -> bool:
    """Delivers to both sinks and truncates what both have; true when nothing waits."""
    sinks = sinks_of(data_dir, journal)
    drained = deliver(store, sinks, virtual_s=PATIENCE_S, now_ns=lambda: NOW_NS)
    store.wal.truncate(holding_seq(store, sinks))
    return drained


def live(data_dir: Path, journal: Journal, unnoticed: Callable[[Callable[[], None]], None]) -> None:
    """The whole life. `unnoticed` runs what is no part of it (damage done from outside) without faults."""
    store = open_store(data_dir)
    commit(store, journal, [entry(1, points=3), entry(2, points=30)], [entry(3, points=1)])
    commit(store, journal, [entry(4, points=40, filler=400)])
    store.wal.seal()
    commit(store, journal, [entry(number, points=20, hour=number % 2) for number in range(5, 9)])
    deliver_and_truncate(data_dir, store, journal)
    commit(store, journal, [entry(9, points=5, hour=2)])
    store.close()

    store = open_store(data_dir)
    for number in (10, 11, 12):
        commit(store, journal, [entry(number, points=12, hour=2)])
        store.wal.seal()
    victims = {
        segment.path: list(range(segment.first_seq, segment.last_seq + 1))
        for segment in store.wal.segments()[-4:-2]
    }
    store.close()
    unnoticed(lambda: _damage(victims, journal))

    # The one is found on opening, the other one only when it is read.
    store = open_store(data_dir)
    commit(store, journal, [entry(13, points=9, hour=2)])
    deliver_and_truncate(data_dir, store, journal)
    commit(store, journal, [entry(14, points=4, hour=3)])
    drop_letters(store, journal)
    store.close()


def drop_letters(store: Store, journal: Journal) -> None:
    """An operator drops every second dead letter."""
    letters = list(store.state.dead_letters("picky"))[::2]
    # Decided before it is done: a failure may come after it.
    journal.letters_lost |= {letter.line for letter in letters}
    store.state.remove_letters("picky", [id_of(letter) for letter in letters], written=False)


def recover(data_dir: Path, journal: Journal, unnoticed: Callable[[Callable[[], None]], None]) -> None:
    """Opening what a bad day left: a damaged state, a segment never named, bytes in the archive never confirmed."""
    store = open_store(data_dir)
    commit(store, journal, [entry(1, points=30)])
    store.wal.seal()
    commit(store, journal, [entry(2, points=3)])
    deliver(store, sinks_of(data_dir, journal), virtual_s=PATIENCE_S, now_ns=lambda: NOW_NS)
    commit(store, journal, [entry(3, points=3, hour=1)])
    store.close()
    unnoticed(lambda: _bad_day(data_dir))
    store = open_store(data_dir)
    commit(store, journal, [entry(4, points=3, hour=1)])
    deliver_and_truncate(data_dir, store, journal)
    store.close()
    unnoticed(lambda: _lose_state(data_dir, journal))
    store = open_store(data_dir)
    commit(store, journal, [entry(5, points=3, hour=1)])
    deliver_and_truncate(data_dir, store, journal)
    store.close()


def acknowledge_too_early(
    data_dir: Path, journal: Journal, unnoticed: Callable[[Callable[[], None]], None]
) -> None:
    """A life that breaks the promise: the sender is told before the commit."""
    store = open_store(data_dir)
    for number in range(1, 6):
        told = entry(number, points=2)
        journal.accepted[number] = told.lines
        store.wal.commit([[told]])
    store.close()


LIVES = {"live": live, "recover": recover}
# Lives that the judge must not let pass.
MUTANTS = {"acknowledge too early": acknowledge_too_early}


def _damage(victims: dict[Path, list[int]], journal: Journal) -> None:
    for number, (path, seqs) in enumerate(victims.items()):
        content = path.read_bytes()
        journal.damaged_files[path.name] = seqs
        if number == 0:
            path.write_bytes(content[: len(content) // 2])
        else:
            at = content.rindex(b"m,e=") if b"m,e=" in content else content.rindex(b"\x1f\x8b")
            path.write_bytes(content[: at + 12] + bytes([content[at + 12] ^ 0xFF]) + content[at + 13 :])


def _bad_day(data_dir: Path) -> None:
    (data_dir / "wal" / "00000000000000000099.lmdb.new").write_bytes(bytes(8192))
    (data_dir / "state.lmdb.new").write_bytes(bytes(100))
    for path in (data_dir / "archive").glob("*/*.lp.gz"):
        with path.open("ab") as file:
            file.write(b"\x1f\x8b\x08never confirmed")
    later = data_dir / "archive" / "2025-11-22"
    later.mkdir(exist_ok=True)
    (later / "23.lp.gz").write_bytes(b"\x1f\x8b\x08 nor this")


def _lose_state(data_dir: Path, journal: Journal) -> None:
    """Only the state file knows where dead letters are: what is parked by then is set aside with it."""
    store = open_store(data_dir)
    journal.letters_lost |= {letter.line for letter in store.state.dead_letters("picky")}
    store.close()
    (data_dir / "state.lmdb").write_bytes(bytes(8192))


def check(data_dir: Path, journal: Journal, *, unreadable: bool = False) -> list[str]:
    """Everything that does not hold after a life; an empty list is what is wanted. Writes and reads more, too.

    With `unreadable` the disk could not be read: then a segment may be set aside that nobody had damaged, and what is
    in it must be delivered all the same.
    """
    wrong: list[str] = []
    store = open_store(data_dir)
    kept = read_everything(store)
    wrong += [
        f"seq {seq} reads otherwise than it was written"
        for seq in kept
        if seq in journal.accepted and kept[seq] != journal.accepted[seq]
    ]
    wrong += [
        f"seq {seq} was refused for want of space, and is stored"
        for seq in kept
        if kept[seq] in journal.refused
    ]
    highest = max(journal.accepted, default=0)
    try:
        commit(store, journal, [entry(100, points=15, hour=4)], [entry(101, points=1, hour=4)])
    except AssertionError as exc:
        wrong.append(str(exc))
    fresh = [seq for seq in journal.accepted if seq > highest]
    if len(fresh) != 2:
        wrong.append(f"new entries got seqs that are not above {highest}")
    if not deliver_and_truncate(data_dir, store, journal):
        wrong.append("delivery does not come to an end")
    parked = list(store.state.dead_letters("picky"))
    if len(parked) != (cursor := store.cursor("picky")).parked:
        wrong.append(f"the cursor counts {cursor.parked} dead letters, and there are {len(parked)}")
    letters = {letter.line for letter in parked} | journal.letters_lost
    archived = _archived(data_dir, wrong)
    given_up = {seq for seqs in journal.damaged_files.values() for seq in seqs}
    for seq, lines in journal.accepted.items():
        missing = set(lines.splitlines(keepends=True)) - archived
        if missing and seq not in given_up:
            wrong.append(f"seq {seq}: {len(missing)} points are not in the archive")
        missing = set(lines.splitlines(keepends=True)) - journal.sink_has - letters
        if missing and seq not in given_up:
            wrong.append(f"seq {seq}: {len(missing)} points are neither confirmed by the sink nor parked")
    for path in (data_dir / "wal" / "damaged").glob("0*.lmdb*"):
        name = re.sub(r"\.(\d+|reason\.txt)$", "", path.name)
        if name not in journal.damaged_files and not unreadable:
            wrong.append(f"{path.name} was set aside, and nobody had damaged it")
    store.close()
    return wrong


def _archived(data_dir: Path, wrong: list[str]) -> set[bytes]:
    lines: set[bytes] = set()
    for path in sorted((data_dir / "archive").glob("*/*.lp.gz")):
        try:
            lines |= set(gzip.decompress(path.read_bytes()).splitlines(keepends=True))
        except (OSError, EOFError, ValueError) as exc:
            wrong.append(f"{path.name} cannot be read to its end: {exc}")
    return lines
