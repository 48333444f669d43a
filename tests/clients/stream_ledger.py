"""What a client of the stream keeps on disk of its frames, so that it finds its place again after a kill -9.

Each event is a line that is handed to the kernel before the client goes on, so it outlives the process. The test reads
the same file with the same rules, and so knows what the client was told.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from types import TracebackType

from wal_ingest.client.messages import Ack, Refusal, Welcome


class Ledger:
    """The events of one stream, in order, from all lives of its client.

    `numbers` says which frames were sent under which numbers; `acked` and `refused` are frames that are settled, with
    the number that they were settled under. `seqs` are all that the server named for a number, `wrong` is what it must
    not have said, `closes` the close codes that ended a connection. `again` counts frames that were sent once more.
    """

    def __init__(self, path: Path) -> None:
        self.numbers: dict[int, int] = {}
        self.acked: dict[int, int] = {}
        self.refused: dict[int, int] = {}
        self.seqs: dict[int, set[int]] = defaultdict(set)
        self.wrong: list[str] = []
        self.closes: set[int] = set()
        self.again = 0
        self.opened = 0
        # Numbers sent on this connection that have no answer, in sending order.
        self.under_way: list[int] = []
        self.highest = 0
        # The first frame that was never sent.
        self.next_frame = 0
        self._points: dict[int, int] = {}
        self._crcs: dict[int, int] = {}
        self._out = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        with os.fdopen(os.dup(self._out), "rb") as file:
            for line in file.read().decode().splitlines():
                event, *values = line.split()
                self._apply(event, *map(int, values))

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._out)

    @property
    def next_number(self) -> int:
        """A number that can be used for another frame."""
        return self.highest + 1

    def unsettled(self) -> list[tuple[int, int]]:
        """Number and frame of everything without an answer, by number: each frame's latest."""
        latest = {frame: number for number, frame in sorted(self.numbers.items())}
        settled = self.acked.keys() | self.refused.keys()
        return sorted((number, frame) for frame, number in latest.items() if frame not in settled)

    # -- what happens ----------------------------------------------------------------------------------

    def welcomed(self, welcome: Welcome) -> None:
        """A connection was opened; what the node says it holds is settled."""
        self._note("opened", welcome.durable)
        for stored in welcome.stored:
            self._note("stored", stored.number, stored.seq, stored.points, stored.crc32)

    def sends(self, number: int, frame: int, points: int, crc: int) -> None:
        """A frame is about to be sent."""
        self._note("sent", number, frame, points, crc)

    def answered(self, answer: Ack | Refusal) -> None:
        """The node said something of frames."""
        if isinstance(answer, Ack):
            self._note("ack", answer.number, answer.points, answer.seq)
        else:
            self._note("error", answer.number or 0, answer.status)

    def closed(self, code: int) -> None:
        """The connection ended."""
        self._note("closed", code)

    def _note(self, event: str, *values: int) -> None:
        os.write(self._out, (" ".join([event, *map(str, values)]) + "\n").encode())
        self._apply(event, *values)

    def _apply(self, event: str, *values: int) -> None:
        getattr(self, f"_{event}")(*values)

    # -- what it means ---------------------------------------------------------------------------------

    def _opened(self, durable: int) -> None:
        self.opened += 1
        self.under_way = []
        self.highest = max(self.highest, durable)
        if durable and durable not in self.numbers:
            self.wrong.append(f"frame {durable} is durable, which was never sent")

    def _closed(self, code: int) -> None:
        self.closes.add(code)

    def _stored(self, number: int, seq: int, points: int, crc: int) -> None:
        self.seqs[number].add(seq)
        if (points, crc) != (self._points.get(number), self._crcs.get(number)):
            self.wrong.append(f"frame {number} is stored with {points} points and CRC-32 {crc}")
            return
        self._durable(number)

    def _sent(self, number: int, frame: int, points: int, crc: int) -> None:
        self.again += number in self.numbers
        self.numbers[number] = frame
        self._points[number], self._crcs[number] = points, crc
        self.under_way.append(number)
        self.next_frame = max(self.next_frame, frame + 1)
        self.highest = max(self.highest, number)

    def _ack(self, number: int, points: int, seq: int) -> None:
        self.seqs[number].add(seq)
        if number not in self.under_way:
            self.wrong.append(f"frame {number} is acknowledged, which is not under way")
            return
        end = self.under_way.index(number) + 1
        answered, self.under_way = self.under_way[:end], self.under_way[end:]
        if points != sum(self._points[each] for each in answered):
            self.wrong.append(
                f"{points} points are acknowledged with frame {number}, not those of {answered}"
            )
        for each in answered:
            self._durable(each)

    def _durable(self, number: int) -> None:
        frame = self.numbers[number]
        if self.acked.setdefault(frame, number) != number or frame in self.refused:
            self.wrong.append(f"frame {number} was settled before, under another number or by an error")

    def _error(self, number: int, status: int) -> None:
        if number not in self.under_way:
            self.wrong.append(f"frame {number} is refused with {status}, which is not under way")
            return
        self.under_way.remove(number)
        if status == 400:
            self.refused[self.numbers[number]] = number
        elif status != 503:
            self.wrong.append(f"frame {number} is refused with {status}")
