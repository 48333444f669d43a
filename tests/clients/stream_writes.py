"""Writes with `wal_ingest.client.open_client` until SIGTERM: `python -m tests.clients.stream_writes`.

Arguments: URL, client_id, the notes' path, the plan's run, and its first time in nanoseconds. Several tasks write at
once, so that frames hold more than one write. What is about to be written is noted, and what was acknowledged, before
anything else is done: the notes outlive a kill -9. Started again it does not write again what it has no answer for,
so whatever is stored twice is the library's or the node's doing.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from random import Random

import trio

from tests.rigs.fleet import Plan, make_points
from wal_ingest.client import Client, Limits, open_client

WRITERS = 8
PAUSE_S_MAX = 0.02
LIMITS = Limits(frame_wait_s_max=0.005, retry_s_min=0.01, retry_s_max=0.1, close_s_max=15)

# Writer and number of a write.
Key = tuple[int, int]


def plan_of(run: str, base_ns: int) -> Plan:
    """What a client of this name writes; its writers are the plan's clients."""
    return Plan(run, base_ns, points=12, seed=len(run), vary=True)


def read_notes(path: Path) -> tuple[set[Key], set[Key]]:
    """What was written, and what of it was acknowledged."""
    told: dict[str, set[Key]] = {"write": set(), "ack": set()}
    for line in path.read_text().splitlines():
        event, writer, number = line.split()
        told[event].add((int(writer), int(number)))
    return told["write"], told["ack"]


class Writers:
    """All tasks of one process."""

    def __init__(self, plan: Plan, path: Path, client: Client) -> None:
        self._plan = plan
        self._client = client
        self._written, _acked = read_notes(path)
        self._out = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._dice = Random()
        self.stopping = False

    async def run(self, writer: int) -> None:
        """One task: a write, its acknowledgement, a pause, the next."""
        number = max((number for one, number in self._written if one == writer), default=-1) + 1
        while not self.stopping:
            lines = [point.line() for point in make_points(self._plan, writer, number)]
            self._note("write", writer, number)
            receipt = await self._client.write("\n".join(lines))
            assert receipt.points == len(lines)
            assert receipt.seq
            self._note("ack", writer, number)
            number += 1
            await trio.sleep(self._dice.uniform(0, PAUSE_S_MAX))

    def _note(self, event: str, writer: int, number: int) -> None:
        os.write(self._out, f"{event} {writer} {number}\n".encode())


async def main(url: str, client_id: str, path: Path, run: str, base_ns: int) -> None:
    async with open_client(url, client_id=client_id, limits=LIMITS) as client, trio.open_nursery() as nursery:
        writers = Writers(plan_of(run, base_ns), path, client)
        async with trio.open_nursery() as writing:
            nursery.start_soon(_stop_on_sigterm, writers)
            for writer in range(WRITERS):
                writing.start_soon(writers.run, writer)
        nursery.cancel_scope.cancel()


async def _stop_on_sigterm(writers: Writers) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            writers.stopping = True


if __name__ == "__main__":
    url, client_id, path, run, base_ns = sys.argv[1:]
    trio.run(main, url, client_id, Path(path), run, int(base_ns))
