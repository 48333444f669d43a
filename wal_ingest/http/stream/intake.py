"""What becomes of one message of a stream before it stands in line: a frame that is checked, known, or refused.

Invariants:

* A number is used once. A frame whose number is not above all that came before is either the very frame that the WAL
  holds under it, or refused.
* No frame uses up the numbers of its stream (see `wal_ingest.stream_numbers`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from wal_ingest.errors import BadRequest, RequestError
from wal_ingest.http import answers
from wal_ingest.http.appending import Appender
from wal_ingest.http.body import BodyBudget, Hold, TooManyBodies
from wal_ingest.http.check import Reading
from wal_ingest.http.checking import Checker
from wal_ingest.http.observer import Observer
from wal_ingest.http.refusals import RefusalLog
from wal_ingest.http.stream import protocol
from wal_ingest.http.stream.pace import Pace
from wal_ingest.http.stream.protocol import BadHeader, Frame, NumberUsed
from wal_ingest.points import Precision
from wal_ingest.points.times import TimeGuess
from wal_ingest.settings import ServerSettings
from wal_ingest.wal.entry import Destination, Mark, NewEntry
from wal_ingest.wal.gzip_codec import crc32
from wal_ingest.wal.streams import Position

ROUTE = "/stream"


@dataclass(frozen=True, slots=True)
class Door:
    """What all streams of a node share. `position` tells how far a client's stream has come, by its id."""

    appender: Appender
    checker: Checker
    budget: BodyBudget
    settings: ServerSettings
    observer: Observer
    refusals: RefusalLog
    now_ns: Callable[[], int]
    monotonic_s: Callable[[], float]
    position: Callable[[str], Position | None]
    pace: Pace


@dataclass(frozen=True, slots=True)
class Asked:
    """What the handshake asked for. `client_id` is None without resume; `plain` is the mode without header lines."""

    client_id: str | None
    plain: bool
    precision: Precision | TimeGuess | None
    destination: Destination
    source: str


@dataclass(slots=True)
class Item:
    """A frame in line: either entries to store, or `stored` where the WAL has them, or a `refusal`.

    `refusal` is the text to answer with. `body_bytes` are those of the frame as it came.
    """

    number: int
    hold: Hold
    points: int = 0
    body_bytes: int = 0
    lines_bytes: int = 0
    entries: list[NewEntry] = field(default_factory=list)
    stored_seq: int = 0
    refusal: str = ""


class Intake:
    """Makes items of a stream's messages, one after the other."""

    def __init__(self, door: Door, asked: Asked) -> None:
        self._door = door
        self._asked = asked
        self._highest = 0

    def begin(self) -> Position | None:
        """How far the stream has come; frames go on above that."""
        position = self._position()
        self._highest = 0 if position is None else position.durable
        return position

    def name(self, number: int | None) -> bytes:
        """What the log calls a frame."""
        return f"{self._asked.client_id or 'stream'}/{number or '?'}".encode()

    async def item(self, message: bytes, hold: Hold) -> Item:
        """One whole message's place in line; whatever is wrong with it, it has one.

        Raises TooManyBodies. Cancellation: nothing is left behind but the hold.
        """
        number: int | None = None
        try:
            if self._asked.plain:
                self._highest += 1
                number = self._highest
                frame = Frame(number, message, written=None, precision=self._asked.precision)
            else:
                frame = protocol.read_frame(message)
                number = frame.number
            return await self._checked(frame, hold)
        except TooManyBodies:
            raise
        except RequestError as exc:
            exc.__traceback__ = None  # its frames hold the body
            number = exc.number if isinstance(exc, BadHeader) else number
            return self._refused(number, exc, hold)
        except Exception as exc:
            return self._broken(number, exc, hold)

    async def _checked(self, frame: Frame, hold: Hold) -> Item:
        """A frame's place in line. Raises RequestError when it is refused."""
        door, asked = self._door, self._asked
        if not asked.plain:
            protocol.check_number(frame.number, self._highest)
        body = await door.checker.decode(frame.body, frame.encoding, hold)
        if not asked.plain and frame.number <= self._highest:
            return self._again(frame, body, hold)
        now_ns = door.now_ns()
        precision = frame.precision or asked.precision
        checked = await door.checker.check(body, Reading(frame.written, precision), now_ns=now_ns, hold=hold)
        for odd in checked.odd:
            door.observer.noticed(ROUTE, odd.oddity.value, asked.source, odd.points, odd.looks_like)
        lines = checked.lines
        if not lines.points:
            raise BadRequest("the body has no points")
        mark = None
        if asked.client_id is not None:
            mark = Mark(asked.client_id, frame.number, crc32(body))
        entries = [
            NewEntry(piece.data, piece.points, now_ns, asked.source, asked.destination, mark)
            for piece in await door.checker.cut(checked, hold)
        ]
        self._highest = frame.number
        lines_bytes = sum(len(entry.lines) for entry in entries)
        return Item(frame.number, hold, lines.points, len(frame.body), lines_bytes, entries)

    def _again(self, frame: Frame, body: bytes, hold: Hold) -> Item:
        """A frame that was sent before: fine when the WAL has it. Raises NumberUsed."""
        number, position = frame.number, self._position()
        for stored in reversed(position.stored if position is not None else ()):
            if stored.number == number:
                if stored.crc != crc32(body):
                    raise NumberUsed(
                        f"number {number} is that of another frame, which is stored: go on above {self._highest}"
                    )
                return Item(number, hold, stored.points, 0, stored_seq=stored.seq)
        raise NumberUsed(
            f"number {number} is not above {self._highest}, and no frame with it is remembered: "
            f"go on above {self._highest}"
        )

    def _refused(self, number: int | None, exc: RequestError, hold: Hold) -> Item:
        return self._refusal(number, self.count_refusal(number, exc), hold)

    def count_refusal(self, number: int | None, exc: RequestError) -> answers.Problem:
        """Counts and logs a refusal; returns its text."""
        problem = answers.problem_of(exc)
        self._door.observer.answered(ROUTE, answers.result_of(problem.status), 0, 0)
        reason = answers.reason_of(exc, problem.status)
        self._door.observer.refused(ROUTE, reason.value, self._asked.source, 0)
        self._door.refusals.refused(
            self.name(number), ROUTE, problem.status, problem.message, self._asked.source
        )
        return problem

    def _broken(self, number: int | None, exc: Exception, hold: Hold) -> Item:
        self._door.observer.answered(ROUTE, "failed", 0, 0)
        self._door.refusals.broke(self.name(number), ROUTE, exc, self._asked.source)
        return self._refusal(number, answers.unexpected(), hold)

    def _refusal(self, number: int | None, problem: answers.Problem, hold: Hold) -> Item:
        # The answer may wait for a slow peer; what was refused must not be held as long.
        hold.release()
        return Item(number or 0, hold, refusal=protocol.error(number, problem))

    def _position(self) -> Position | None:
        client_id = self._asked.client_id
        return None if client_id is None else self._door.position(client_id)
