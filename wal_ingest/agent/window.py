"""The frames of one connection that are not settled yet, and what the node says it has. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from wal_ingest.client.messages import StoredFrame, Welcome
from wal_ingest.wal.entry import Entry
from wal_ingest.wal.gzip_codec import crc32


@dataclass(slots=True)
class _Sent:
    entry: Entry
    settled: bool = False
    refused: bool = False


class Window:
    """Frames in sending order. They are settled in any order, and given back in order."""

    def __init__(self) -> None:
        self._sent: deque[_Sent] = deque()

    @property
    def unanswered(self) -> int:
        """How many frames wait for an answer."""
        return sum(not sent.settled for sent in self._sent)

    def add(self, entry: Entry, *, refused: bool = False) -> None:
        """An entry that was sent; or `refused`, in an earlier life perhaps, so that nothing is to be waited for."""
        self._sent.append(_Sent(entry, settled=refused, refused=refused))

    def ack(self, number: int) -> None:
        """Everything up to a number, in sending order, is durable, but for what was refused.

        Raises ValueError when no such frame waits.
        """
        self._find(number)
        for sent in self._sent:
            sent.settled = True
            if sent.entry.seq == number:
                break

    def refuse(self, number: int) -> Entry:
        """The node will not take a frame; gives its entry, which the caller keeps. Raises ValueError likewise."""
        sent = self._find(number)
        sent.settled = sent.refused = True
        return sent.entry

    def take_settled(self) -> tuple[list[Entry], set[int]]:
        """Takes out what is settled with nothing unsettled in front; with the seqs of those that were refused."""
        entries, refused = [], set()
        while self._sent and self._sent[0].settled:
            sent = self._sent.popleft()
            entries.append(sent.entry)
            if sent.refused:
                refused.add(sent.entry.seq)
        return entries, refused

    def _find(self, number: int) -> _Sent:
        for sent in self._sent:
            if sent.entry.seq == number and not sent.settled:
                return sent
        raise ValueError(f"an answer to frame {number}, which does not wait for one")


def stored_of(entries: Sequence[Entry], welcome: Welcome, refused: set[int]) -> list[Entry] | None:
    """Which of the entries the node has, or has refused, by its welcome; they come first.

    `entries` are the first ones that are not settled. None when the node's numbers are not this spool's: one of them is
    behind what is durable there, yet the node does not say that it has the very same. That is a spool that was restored
    from a backup, or copied to another host.
    """
    known: dict[int, StoredFrame] = {frame.number: frame for frame in welcome.stored}
    found = []
    for entry in entries:
        if entry.seq > welcome.durable:
            break
        frame = known.get(entry.seq)
        if entry.seq not in refused and (frame is None or frame.crc32 != crc32(entry.lines())):
            return None
        found.append(entry)
    return found
