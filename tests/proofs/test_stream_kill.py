"""kill -9 of the server and of a client, and cut connections: every frame that was acknowledged is stored, and once."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from tests.clients import stream_frames, stream_writes
from tests.clients.stream_ledger import Ledger
from tests.rigs.account import account_archive, account_victoria_metrics, archive_lines, points_of
from tests.rigs.fleet import MS
from tests.rigs.load import Sent
from tests.rigs.processes import Process, wait_until
from tests.rigs.relay import Relay
from tests.rigs.seeds import round_seed
from tests.rigs.service import Service, to_influxdb
from tests.rigs.victoria_metrics import VictoriaMetrics

ROOT = Path(__file__).parent.parent.parent
LIVES_S_MAX = 0.15


class Sender:
    """A client process, which keeps its name and its ledger over any number of lives."""

    def __init__(self, module: str, name: str, relay: Relay, logs: Path) -> None:
        self.name = name
        self.base_ns = (time.time_ns() - 7200 * 1000 * MS) // MS * MS
        self.path = logs / f"{name}.ledger"
        self.path.touch()
        self.kills = 0
        self._module = module
        self._url = f"ws://127.0.0.1:{relay.port}"
        self._logs = logs
        self._process: Process | None = None

    @property
    def process(self) -> Process:
        assert self._process is not None, "the client was not started"
        return self._process

    def start(self) -> None:
        arguments: list[str | Path] = [self._url, self.name, self.path, self.name, str(self.base_ns)]
        self._process = Process(
            f"client {self.name}",
            [sys.executable, "-m", f"tests.clients.{self._module}", *arguments],
            log=self._logs / f"{self.name}.log",
            cwd=ROOT,
        )

    def kill(self) -> None:
        self.process.kill()
        self.kills += 1

    def wait_for_acks(self) -> None:
        """Waits until the client notes an acknowledgement after now."""
        with self.path.open("rb") as file:
            file.seek(0, 2)
            heard = bytearray()

            def acked() -> bool:
                assert self.process.running, f"{self.name} ended\n{self.process.log_tail()}"
                heard.extend(file.read())
                return b"ack" in heard

            wait_until(acked, f"{self.name} has an ack", s_max=20, every_s=0.01, also=self.process.log_tail())

    def finish(self) -> None:
        """Lets it send no more and hear of all that it sent; not before it runs, or SIGTERM would be its end."""
        self.wait_for_acks()
        assert self.process.stop(s_max=20) == 0, self.process.log_tail()


class Scene:
    """A server behind a relay, and its clients; what may be done to them has the name that the log shows."""

    def __init__(self, service: Service, relay: Relay, senders: list[Sender], dice: Random) -> None:
        self.service = service
        self.relay = relay
        self.senders = senders
        self._dice = dice

    def kill_server(self) -> None:
        self.service.kill()
        self.start_server()

    def start_server(self) -> None:
        self.service.start()
        self.relay.upstream_port = self.service.port

    def kill_client(self) -> None:
        sender = self._dice.choice(self.senders)
        sender.kill()
        sender.start()

    def kill_both(self) -> None:
        sender = self._dice.choice(self.senders)
        sender.kill()
        self.service.kill()
        sender.start()
        self.start_server()

    def cut(self) -> None:
        self.relay.cut(self._dice.randint(1, 4))

    def cut_and_kill_server(self) -> None:
        self.relay.cutting = True
        threading.Event().wait(self._dice.uniform(0, LIVES_S_MAX))
        self.kill_server()
        self.relay.cutting = False

    def play(self, faults: tuple[Callable[[Scene], None], ...], rounds: int) -> None:
        """One fault after another, each at a moment that the dice decide, and acknowledgements in between."""
        for number in range(rounds):
            for sender in self.senders:
                sender.wait_for_acks()
            threading.Event().wait(self._dice.uniform(0, LIVES_S_MAX))
            # In turn, so that a short run has each of them.
            fault = faults[number % len(faults)]
            print(f"round {number}: {fault.__name__}")
            fault(self)


@contextmanager
def scene(module: str, names: list[str], database: VictoriaMetrics, tmp_path: Path) -> Iterator[Scene]:
    """A server with two sinks, small segments that go when they are confirmed, and running clients.

    The archive is there because a crash leaves no doubles in it: a line that is in it twice was in the log twice.
    """
    seed = round_seed()
    print(f"seed {seed}")
    settings = to_influxdb(
        database.url, wal__segment_bytes_max=1024 * 1024, wal__segment_s_max=0.3, archive__enabled="on"
    )
    service = Service(tmp_path / "data", logs=tmp_path, settings=settings)
    with Relay(seed=seed) as relay, service:
        relay.upstream_port = service.port
        senders = [Sender(module, name, relay, tmp_path) for name in names]
        try:
            for sender in senders:
                sender.start()
            yield Scene(service, relay, senders, Random(seed))
        finally:
            for sender in senders:
                sender.process.end()


def _sent_by(sender: Sender, ledger: Ledger) -> list[Sent]:
    plan = stream_frames.plan_of(sender.name, sender.base_ns)
    return [Sent(plan, 0, frame, 202, 0, 0) for frame in sorted(ledger.acked)]


def _check_answers(ledger: Ledger) -> None:
    """What the server said over all connections agrees with itself, and with what was sent."""
    assert ledger.wrong == []
    assert ledger.unsettled() == []
    assert {number: seqs for number, seqs in ledger.seqs.items() if len(seqs) > 1} == {}
    seqs = [seq for _, (seq,) in sorted(ledger.seqs.items())]
    assert seqs == sorted(set(seqs)), "seqs do not rise with the numbers"
    every = set(ledger.numbers.values())
    assert set(ledger.refused) == {frame for frame in every if stream_frames.is_malformed(frame)}
    assert set(ledger.acked) == every - set(ledger.refused)
    # 1006: the connection broke. The client's ends are all the relay's or a killed server's.
    assert ledger.closes <= {1006}


def _check_database(database: VictoriaMetrics, sent: list[Sent], names: list[str]) -> None:
    matches = [f'{{__name__="{name}_value"}}' for name in names]
    wait_until(
        lambda: account_victoria_metrics(database.values(*matches), sent).lost == 0,
        "every point of an acknowledged frame is in VictoriaMetrics",
        s_max=15,
        every_s=1,
    )
    account_victoria_metrics(database.values(*matches), sent).check()


# Most of them are cuts, which cost milliseconds; a kill costs the start of a process.
FAULTS = (
    Scene.kill_server,
    Scene.cut,
    Scene.kill_client,
    Scene.cut,
    Scene.cut,
    Scene.kill_both,
    Scene.cut,
    Scene.cut,
    Scene.cut_and_kill_server,
    Scene.cut,
    Scene.kill_client,
    Scene.cut,
    Scene.cut,
    Scene.cut,
    Scene.cut,
)


def _frames_are_stored_once(database: VictoriaMetrics, tmp_path: Path, rounds: int) -> None:
    names = ["framesa", "framesb"]
    with scene("stream_frames", names, database, tmp_path) as the:
        the.play(FAULTS, rounds)
        for sender in the.senders:
            sender.finish()
        told = the.service.wait_drained("influxdb")
        the.service.wait_drained("archive")
        assert the.service.stop() == 0
    sent = []
    for sender in the.senders:
        with Ledger(sender.path) as ledger:
            _check_answers(ledger)
            sent += _sent_by(sender, ledger)
            print(
                f"{sender.name}: {len(ledger.acked)} frames acknowledged, {len(ledger.refused)} refused, "
                f"{ledger.opened} connections, {ledger.again} frames sent again, killed {sender.kills} times"
            )
            assert ledger.again > 0, "nothing was ever under way when a fault struck"
    assert told["sinks"]["influxdb"]["parked"] == 0
    # Nothing was stored that was not acknowledged in the end, and nothing twice.
    assert told["points_accepted"] == points_of(sent)
    account_archive(archive_lines(tmp_path / "data"), sent).check()
    _check_database(database, sent, names)


def _writes_are_stored_once(database: VictoriaMetrics, tmp_path: Path, rounds: int) -> None:
    with scene("stream_writes", ["writes"], database, tmp_path) as the:
        (sender,) = the.senders
        the.play(FAULTS, rounds)
        sender.finish()
        the.service.wait_drained("influxdb")
        the.service.wait_drained("archive")
        assert the.service.stop() == 0
    plan = stream_writes.plan_of(sender.name, sender.base_ns)
    written, acked = stream_writes.read_notes(sender.path)
    sent = [Sent(plan, *one, 202 if one in acked else 0, 0, 0) for one in sorted(written)]
    print(
        f"{len(written)} writes, {len(written - acked)} of them without an answer, killed {sender.kills} times"
    )
    # Those of a life that ended by a kill, and of no other: the library delivered all the rest.
    assert len(written - acked) <= sender.kills * stream_writes.WRITERS
    account_archive(archive_lines(tmp_path / "data"), sent).check()
    _check_database(database, sent, [sender.name])


@pytest.mark.timeout(300)
@pytest.mark.needs("victoria-metrics")
def test_7_kills_and_cuts_lose_no_acknowledged_frame_and_store_none_twice(tmp_path: Path) -> None:
    with VictoriaMetrics(tmp_path) as database:
        _frames_are_stored_once(database, tmp_path, rounds=7)


@pytest.mark.timeout(300)
@pytest.mark.needs("victoria-metrics")
def test_6_kills_and_cuts_lose_no_write_that_has_its_receipt_and_store_none_twice(tmp_path: Path) -> None:
    with VictoriaMetrics(tmp_path) as database:
        _writes_are_stored_once(database, tmp_path, rounds=6)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.needs("victoria-metrics")
def test_50_kills_and_cuts_lose_no_acknowledged_frame_and_store_none_twice(tmp_path: Path) -> None:
    with VictoriaMetrics(tmp_path) as database:
        _frames_are_stored_once(database, tmp_path, rounds=50)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.needs("victoria-metrics")
def test_50_kills_and_cuts_lose_no_write_that_has_its_receipt_and_store_none_twice(tmp_path: Path) -> None:
    with VictoriaMetrics(tmp_path) as database:
        _writes_are_stored_once(database, tmp_path, rounds=50)
