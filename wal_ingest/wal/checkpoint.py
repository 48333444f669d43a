"""How far each stream has come, remembered across the lives of the process.

The marks of frames are in the log itself, so the table of positions can always be built again from it, as long as the
log is there. The checkpoint in the state file is for what has been dropped from the log since, and so that a start need
not read all of it: it holds the positions as they were when the log had come to a certain seq.

Invariants:

* The checkpoint and the seq through which it is complete are of one moment, and one transaction.
* A segment is dropped only after the checkpoint has passed its last seq (`Wal.before_drop`). Only where the disk has no
  room for that the segment goes all the same: space is what everybody waits for then, and a frame that is forgotten
  costs a double, no point.
* What was claimed and is in doubt is forgotten. A frame is remembered only if its entries are in a segment that is
  there, or were before the log's beginning when the checkpoint was written: those were confirmed, and dropped. What was
  dropped since then is in doubt as well, which is how a crash right after a truncation looks.

Can it claim a frame that is not durable? It is written from memory, and memory moves on only after the commit has
returned, with both of its syncs. What a start adds, it reads from files: a kill -9 in the middle of a commit may have
left pages in the page cache that look committed. But opening the log syncs the last segment before any is believed,
and no other can have such pages: each life writes to segments of its own, to the last of them only, and begins the next
one after the commits to it have returned. A commit that failed leaves nothing to be read, because LMDB writes the meta
page only after the pages that it speaks of are synced. So whatever is claimed was on the disk before the claim was.

An old state file that somebody restored knows less, and what it knows was true. A log that somebody restored, or took
away, is shorter than the checkpoint says, and what is not in it is forgotten. The numbering of entries goes on above
the checkpoint as it does above the cursors, so that no new entry can pass for one that it speaks of.

What a start reads is bounded, newest first. Damage is not set aside here, nor reported: that is for the readers, who
come later. A segment of which not every entry can be read adds nothing. Files are read by `PageReader`, without
LMDB's engine, which a damaged file could crash.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from wal_ingest.errors import StorageFailed, WalDamaged
from wal_ingest.settings import WalSettings
from wal_ingest.wal.entry import Mark
from wal_ingest.wal.lmdb_file import Item
from wal_ingest.wal.lmdb_pages import Found, PageReader
from wal_ingest.wal.log import Wal
from wal_ingest.wal.segment import Segment, decode_item
from wal_ingest.wal.state import State
from wal_ingest.wal.streams import Position

KEY_STREAMS = b"streams"
STREAM = b"stream/"

# What a start reads of the log at the most, in whole segments: seconds, where entries are small.
_SCAN_BYTES_MAX = 256 << 20
_SEQ_MAX = 2**64 - 1


class Through(msgspec.Struct, frozen=True):
    """Through which seq a checkpoint is complete, and which was the first seq in the log when it was written.

    Where it was written because segments were about to go, that is the first seq behind them.
    """

    seq: int
    first_seq: int


def read_through(state: State) -> Through | None:
    """What the state file says of its checkpoint; None where there is none, as in a directory of an earlier version."""
    value = dict(state.records(KEY_STREAMS)).get(KEY_STREAMS)
    if value is None:
        return None
    try:
        return msgspec.json.decode(value, type=Through)
    except msgspec.MsgspecError:
        return None


class Checkpoint:
    """The checkpoint of an open log, whose positions it fills. `save` may be called on any thread.

    `through` is what `read_through` said before the log was opened.
    """

    def __init__(
        self,
        state: State,
        wal: Wal,
        settings: WalSettings,
        through: Through | None,
        *,
        now_ns: Callable[[], int],
    ) -> None:
        """Raises `StorageFailed`."""
        self._state = state
        self._wal = wal
        self._keep_s = settings.stream_keep_s
        self._now_ns = now_ns
        # Held while changes are taken and written, so that no older checkpoint can follow a newer one.
        self._mutex = threading.Lock()
        self._saved = through
        # Records that nobody can read, or that belong to no checkpoint.
        self._leftover: list[bytes] = []
        if through is None:
            # An earlier version knew of no streams, so there is nothing to look for in what it wrote.
            self._leftover = [key for key, _value in state.records(STREAM)]
            self.save(now_ns())
        else:
            self._restore(through)
        wal.before_drop = self._save_before_drop

    # -- a start ---------------------------------------------------------------------------------------

    def _restore(self, through: Through) -> None:
        positions = self._wal.positions  # nobody else knows the log yet, so its lock is not needed
        positions.restore(self._recorded())
        positions.forget_entries(_not_there(self._wal.segments(), through))
        for segment in _worth_reading(self._wal.segments(), through.seq):
            for each in _marked(segment.path, max(segment.first_seq, through.seq + 1), segment.last_seq):
                positions.apply(*each)

    def _recorded(self) -> list[Position]:
        found = []
        for key, value in self._state.records(STREAM):
            position = Position.decode(key.removeprefix(STREAM).decode(errors="replace"), value)
            if position is None:
                self._leftover.append(key)
            else:
                found.append(position)
        return found

    # -- saving ----------------------------------------------------------------------------------------

    @property
    def seq(self) -> int:
        """The seq through which the checkpoint on disk is complete; 0 while there is none."""
        return self._saved.seq if self._saved is not None else 0

    @property
    def is_due(self) -> bool:
        """Whether there is something to write down that would spare the next start some reading."""
        sealed = (segment.last_seq for segment in reversed(self._wal.segments()) if segment.sealed)
        return self._saved is None or self._wal.positions.changed or next(sealed, 0) > self.seq

    def save(self, now_ns: int) -> bool:
        """Writes down what changed since the last time, durably; forgets streams that were silent for too long.

        Returns false where the disk has no room for it: nothing was written, and the next time it is tried again.
        Raises `StorageFailed`: final for this process.
        """
        return self._save(now_ns, dropping_seq=0)

    def _save_before_drop(self, last_seq: int) -> None:
        """Called by the log before segments go. Where there is no room they go all the same; see the module's text."""
        if last_seq > self.seq:
            self._save(self._now_ns(), dropping_seq=last_seq)

    def _save(self, now_ns: int, *, dropping_seq: int) -> bool:
        with self._mutex:
            taken = self._wal.take_position_changes(now_ns=now_ns, keep_s=self._keep_s)
            kept = [position for position in taken.changes.values() if position is not None]
            gone = [client_id for client_id, position in taken.changes.items() if position is None]
            through = Through(taken.last_seq, max(taken.first_seq, dropping_seq + 1))
            if through == self._saved and not (kept or gone or self._leftover):
                return True
            puts: list[Item] = [(STREAM + each.client_id.encode(), each.encode()) for each in kept]
            puts.append((KEY_STREAMS, msgspec.json.encode(through)))
            deletes = [*self._leftover, *(STREAM + client_id.encode() for client_id in gone)]
            written = False
            try:
                written = self._state.write_if_room(sorted(puts), deletes)
            finally:
                if not written:
                    self._wal.put_position_changes_back(taken)
            if written:
                self._saved, self._leftover = through, []
            return written


def _not_there(segments: Sequence[Segment], through: Through) -> list[tuple[int, int]]:
    """Ranges of seqs, both ends included, of which the checkpoint may speak though no segment has them any more."""
    ranges = []
    expected = through.first_seq
    for segment in segments:
        if segment.first_seq > expected:
            ranges.append((expected, segment.first_seq - 1))
        expected = max(expected, segment.last_seq + 1)
    ranges.append((expected, _SEQ_MAX))
    return [(first, last) for first, last in ranges if first <= through.seq]


def _worth_reading(segments: Sequence[Segment], after_seq: int) -> list[Segment]:
    """The segments with entries behind a seq, oldest first; only the newest where that would be too much to read."""
    chosen: list[Segment] = []
    left = _SCAN_BYTES_MAX
    for segment in reversed(segments):
        if segment.last_seq <= after_seq or left <= 0:
            break
        if segment.last_seq >= segment.first_seq:
            chosen.append(segment)
            left -= segment.bytes
    return chosen[::-1]


def _marked(path: Path, first_seq: int, last_seq: int) -> list[tuple[Mark, int, int, int]]:
    """Mark, seq, points and time of acceptance of each entry that has a mark; nothing where one cannot be read."""
    found = []
    expected = first_seq
    try:
        reader = PageReader(path)
        try:
            for item in reader.whatever_from(first_seq.to_bytes(8, "big")):
                if not isinstance(item, Found):
                    return []
                entry = decode_item((item.key, item.value), path)
                if entry.seq != expected:
                    return []
                expected += 1
                if entry.mark is not None:
                    found.append((entry.mark, entry.seq, entry.points, entry.accepted_ns))
        finally:
            reader.close()
    except (WalDamaged, StorageFailed):
        return []
    return found if expected == last_seq + 1 else []
