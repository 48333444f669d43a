"""Random batches, bad points, ways of refusing, outages and restarts: each point ends where it should, in its order."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import pytest
import trio
import trio.testing
from msgspec import structs

from tests.flusher.rig import SETTINGS, DeliveryRig
from tests.flusher.twins import START_NS
from wal_ingest.flusher.outcome import Misconfigured, Outcome, Unavailable
from wal_ingest.flusher.sinks.influxdb_answers import outcome_of
from wal_ingest.wal.entry import Destination

POINTS_MAX = 40
OLD_NS = START_NS - 10**15
OUTAGES: tuple[Outcome, ...] = (
    Unavailable("HTTP 500", 500, suspect=True),
    Unavailable("HTTP 503", 503),
    Unavailable("HTTP 503", 503, retry_after_s=20.0),
    Unavailable("the connection was closed without an answer", suspect=True),
    Misconfigured("HTTP 401: unauthorized", 401, suspect=True),
    Misconfigured("HTTP 403: Forbidden", 403, suspect=True),
)
CONFLICT = (
    'field type conflict: input field "v" on measurement "m" is type string, already exists as type float'
)
RETENTION = "partial write: points beyond retention policy"


@dataclass(frozen=True)
class Way:
    """How a write with bad points is answered, and what these look like: a name of `BAD`."""

    bad: str
    status: int
    message: str = ""
    stores: bool = False


# By its number in the entry: what makes a line bad is that it has a string, or is old.
BAD: dict[str, Callable[[int], str]] = {
    "typed": lambda n: f'm,host=h{n % 7} v="x{n}" {START_NS + n % 3}\n',
    "old": lambda n: f"m,host=h{n % 7} v={n} {OLD_NS - n}\n",
    "of one shape": lambda n: f'log,host=h{n % 7} text="x{n}" {START_NS + n}\n',
    "of many shapes": lambda n: f'log,host=h{n % 7},t{n % 9}=1 text="x{n}" {START_NS + n}\n',
    "of an own series": lambda n: f"m,host=bad{n} v={n} {OLD_NS}\n",
}
WAYS = [
    Way("typed", 400, f"partial write: {CONFLICT} dropped={{bad}}", stores=True),
    Way("typed", 422, f"failure writing points: partial write: {CONFLICT} dropped={{bad}}", stores=True),
    Way("typed", 422, CONFLICT),
    Way("typed", 400, f"partial write: {CONFLICT} dropped=1", stores=True),
    Way("old", 422, f"{RETENTION} dropped={{bad}}", stores=True),
    Way("old", 422, f"{RETENTION} dropped=1", stores=True),
    Way("old", 500, f"unexpected error writing points to database: {RETENTION} dropped=1", stores=True),
    *(
        Way(bad, status, message)
        for bad in ("of one shape", "of many shapes", "of an own series", "old")
        for status, message in (
            (500, ""),
            (403, ""),
            (0, ""),
            (400, ""),
            (400, "the points cannot be written"),
        )
    ),
]


def is_bad(line: bytes) -> bool:
    return b'"x' in line or int(line.rsplit(b" ", 1)[1]) < START_NS


def answer_of(way: Way, bad: int) -> Outcome:
    if not way.status:
        return Unavailable("the connection was closed without an answer", suspect=True)
    body = json.dumps({"code": "invalid", "message": way.message.format(bad=bad)}) if way.message else ""
    headers = {"content-type": "application/json", "x-influxdb-version": "1.8.0"}
    return outcome_of(way.status, headers, body.encode(), now_ns=START_NS)


class World:
    """A rig whose sink refuses in a random way, and fails altogether now and then. `order` is all that it stored."""

    def __init__(self, dice: Random) -> None:
        self.dice = dice
        self.way = dice.choice(WAYS)
        self.in_flight_max = dice.choice([1, 4])
        self.rig = DeliveryRig(
            in_flight_max=self.in_flight_max,
            settings=structs.replace(SETTINGS, batch_points_max=POINTS_MAX, batch_wait_s_max=0.1),
        )
        self.order: list[bytes] = []
        self.rig.sink.answer = self.answer
        begins = sorted(dice.uniform(0.0, 120.0) for _ in range(dice.choice([0, 0, 1, 3])))
        self.destinations = [Destination(bucket=f"b{n}") for n in range(dice.choice([1, 1, 3]))]
        self.went_to: dict[bytes, Destination] = {}
        # Of one destination, or of all.
        self.outages = [
            (
                at_s,
                at_s + dice.expovariate(1 / 20),
                dice.choice([None, *self.destinations]),
                dice.choice(OUTAGES),
            )
            for at_s in begins
        ]
        self.share = dice.choice([0.02, 0.1, 0.5])

    async def answer(self, lines: list[bytes]) -> Outcome | None:
        await trio.sleep(0.005)
        for begin_s, end_s, destination, outcome in self.outages:
            here = destination is None or destination == self.went_to[lines[0]]
            if here and begin_s <= trio.current_time() < end_s:
                return outcome
        bad = sum(map(is_bad, lines))
        if not bad or self.way.stores:
            self.order += [line for line in lines if not is_bad(line)]
        return answer_of(self.way, bad) if bad else None

    def append_good(self) -> None:
        """An entry that passes for each destination: without, nothing more is held against the points before it."""
        for destination in self.destinations:
            line = f"m,host=own{self.rig.log.last_seq + 1} v=1 {START_NS}\n".encode()
            self.went_to[line] = destination
            self.rig.log.append(1, lines=line, destination=destination)

    def append(self) -> None:
        """An entry in which points replace others: of few series, at few times, with values that tell them apart."""
        seq, dice = self.rig.log.last_seq + 1, self.dice
        lines, bad = list[str](), 0
        # Bad points like good ones are few: a sink that refuses most points of a shape refuses the shape.
        few = self.way.bad in ("of an own series", "old")
        for n in range(dice.choice([1, 3, 20, 40])):
            if dice.random() < self.share and (not few or (n >= 10 and bad < 2)):
                bad += 1
                lines.append(BAD[self.way.bad](seq * 100 + n))
            else:
                extra = ",w=1i" if dice.random() < 0.2 else ""
                lines.append(
                    f"m,host=h{dice.randrange(7)} v={seq * 100 + n}{extra} {START_NS + dice.randrange(3)}\n"
                )
        # One point of a series that no bad one holds up: where nothing at all passes, nothing is held against any.
        lines[-1:] = [f"m,host=own{seq} v={seq} {START_NS}\n"]
        destination = dice.choice(self.destinations)
        self.went_to.update((line.encode(), destination) for line in lines)
        self.rig.log.append(len(lines), lines="".join(lines).encode(), destination=destination)

    async def run(self) -> None:
        rig, dice = self.rig, self.dice
        entries = dice.randrange(2, 12)
        lives = dice.choice([1, 1, 4])
        while lives:
            lives -= 1
            async with rig.running():
                for _ in range(entries if not lives else entries // 4):
                    self.append()
                    entries -= 1
                    await trio.sleep(dice.choice([0.0, 0.0, 1.0, 10.0]))
                if lives:
                    await trio.sleep(dice.expovariate(1 / 20))
                else:
                    self.append_good()
                    with trio.fail_after(3_600.0):
                        await rig.state.reached(rig.log.last_seq)

    def check(self) -> None:
        rig = self.rig
        every = rig.log.all_lines()
        assert sorted(letter.line for letter in rig.state.letters) == sorted(filter(is_bad, every))
        assert set(self.order) == {line for line in every if not is_bad(line)}
        cursor = rig.state.cursor("fake")
        assert (cursor.seq, cursor.ahead, cursor.reach, cursor.open) == (rig.log.last_seq, 0, 0, ())
        assert (cursor.parked, cursor.unaccounted) == (len(rig.state.letters), 0)
        if self.in_flight_max == 1:
            assert self.latest(self.order) == self.latest(every)
        places = {line: place for place, line in enumerate(self.order)}
        for entry in rig.log.entries:
            written = sorted(
                set(entry.lines().splitlines(keepends=True)) & places.keys(), key=places.__getitem__
            )
            assert self.latest(written) == self.latest(entry.lines().splitlines(keepends=True))
        outages_s = max((end_s for _, end_s, _, _ in self.outages), default=0.0)
        assert trio.current_time() < outages_s + 900.0
        assert len(rig.sink.writes) < 60 * (len(rig.state.letters) + rig.log.last_seq + 5)

    def latest(self, lines: Sequence[bytes]) -> dict[object, bytes]:
        """What a database keeps: of each point, so of a series and time in a bucket, the last line."""
        kept: dict[object, bytes] = {}
        for line in lines:
            if not is_bad(line):
                series, _, time = line.split(b" ")
                kept[self.went_to[line], series, time] = line
        return kept


@pytest.mark.parametrize("seed", range(12))
async def test_each_point_of_random_batches_ends_where_it_should(
    autojump_clock: trio.testing.MockClock, seed: int
) -> None:
    world = World(Random(seed))
    await world.run()
    world.check()
