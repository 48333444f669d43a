"""The service: the one module that knows both halves, the front door and the flusher.

One Trio nursery holds all of it: the listener, the WAL's writer, one delivery per sink, and the caretaker, which
seals by age, looks at the free disk and truncates.

How it stops, in this order, each step only when the one before has ended:

1. The listener closes; requests under way are answered (their appends are still committed).
2. The writer commits what waits, and its thread ends.
3. Each delivery ends the writes under way, makes its cursor durable, and closes its sink.
4. The files are closed and the directory is let go of.

Behind it stands a watchdog thread: a step that hangs (a sync that does not return cannot be cancelled) must not
keep a process alive that was told to stop. Leaving at once is safe at any point: it is what `kill -9` does.
"""

from __future__ import annotations

import random
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import cast

import msgspec
import structlog
import trio

from wal_ingest.addresses import parse_bind
from wal_ingest.control import serve_control
from wal_ingest.errors import WalIngestError
from wal_ingest.flusher.delivery import Delivery
from wal_ingest.flusher.sinks import Sink
from wal_ingest.flusher.status import Progress, SinkStatus
from wal_ingest.heap import give_memory_back
from wal_ingest.http.admin import create_admin_app
from wal_ingest.http.asgi import AsgiCallable
from wal_ingest.http.body import BodyBudget
from wal_ingest.http.checking import Checker
from wal_ingest.http.ingest import Ingest
from wal_ingest.http.origins import is_loopback
from wal_ingest.http.refusals import RefusalLog
from wal_ingest.http.server import serve
from wal_ingest.http.stream.streams import Streams
from wal_ingest.http.worker import Worker
from wal_ingest.metrics import Metrics
from wal_ingest.service.caretakers import CARETAKER_S, Caretakers, Moved
from wal_ingest.service.collector import Collector
from wal_ingest.service.commands import node_commands
from wal_ingest.service.log_reader import LogReader, report_set_aside
from wal_ingest.service.numbers import Numbers, odd_times_json
from wal_ingest.service.sinks import SinkRunner, absent_statuses, sink_makers, standby_names
from wal_ingest.service.watch import Watch
from wal_ingest.settings import Settings
from wal_ingest.signals import Watchdog, report_ignored_signals, stop_on_signals
from wal_ingest.wal.accounts import disagreements
from wal_ingest.wal.directory import allow_many_files
from wal_ingest.wal.file_system import concern_about, file_system_of
from wal_ingest.wal.required import Presence
from wal_ingest.wal.store import Store
from wal_ingest.wal.writer import Writer

# With the default of 5 ms a thread that wants the GIL back (the event loop after a sync, say) waits that long
# behind a busy one: an inline check of a body took 4.7 ms instead of 0.3.
_SWITCH_INTERVAL_S = 0.0002

# The part of `stop_s_max` that runners have for their writes under way.
_DELIVERY_PART_OF_STOP = 0.15

_log = structlog.get_logger("wal_ingest.service")


class Service:
    """`wal-ingest serve`, from the settings to the exit code.

    `sockets` listen already (see `listeners`), and are closed when it ends. `ready` is called once with
    the address (`http://127.0.0.1:8400`) when requests are taken.
    """

    def __init__(
        self, settings: Settings, *, sockets: list[socket.socket], ready: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._ready = ready
        self._sockets = sockets
        self._shutdown = trio.Event()
        self._moved = Moved()
        self._metrics = Metrics()
        self._failure: Exception | None = None
        self._streams: Streams | None = None
        self._watchdog = Watchdog(
            settings.server.stop_s_max,
            message="not stopped within server.stop_s_max: ending at once; nothing accepted is lost by that",
        )

    async def run(self) -> int:
        """Runs until SIGTERM or SIGINT; returns the exit code.

        Raises `ConfigError`, `OperatorNeeded` (the WAL failed, among others).
        """
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        give_memory_back()
        allow_many_files()
        data_dir = Path(self._settings.server.data_dir)
        self._warn_of_open_address()
        try:
            store = Store(
                data_dir,
                self._settings.wal,
                now_ns=time.time_ns,
                letters_bytes_max=self._settings.flusher.dead_letters_bytes_max,
            )
        except BaseException:
            for sock in self._sockets:
                sock.close()
            raise
        try:
            _warn_about_file_system(data_dir)
            self._report_recovery(store)
            writer = Writer(store.wal, self._settings.wal, observer=self._metrics.commits)
            runners = self._runners(store, writer, data_dir)
            with stop_on_signals(self._stop, self._watchdog):
                await self._run_parts(store, writer, runners)
        except BaseExceptionGroup as group:
            raise _our_own(group) from group
        finally:
            store.close()
        _log.info("stopped")
        return 0

    def _warn_of_open_address(self) -> None:
        server = self._settings.server
        if not server.write_token and not is_loopback(parse_bind(server.bind)[0]):
            _log.warning(
                "anyone who can reach this address may write: set server.write_token", bind=server.bind
            )

    def _report_recovery(self, store: Store) -> None:
        for moved in store.wal.damaged:
            report_set_aside(moved)
        missing: list[tuple[int, int, int | None]] = []
        missing += [(gap.first_seq, gap.last_seq, gap.points) for gap in store.wal.gaps()]
        missing += [(lost.first_seq, lost.last_seq, lost.points) for lost in store.missing]
        for first_seq, last_seq, points in dict.fromkeys(missing):
            _log.error("points are missing", points=points, first_seq=first_seq, last_seq=last_seq)
        for name in store.overtaken:
            _log.error("the log begins behind the sink's cursor, as with an old state file", sink=name)
        for path in store.state.letters_set_aside:
            _log.error("dead letters that the state file does not know are set aside", path=str(path))
        if store.state_trouble:
            _log.error("every sink starts again at the oldest entry kept", reason=store.state_trouble)
        for disagreement in disagreements(store.state.cursors(), store.wal.segments()):
            _log.error("the account does not add up", reason=disagreement)
        _log.info(
            "recovered",
            segments=len(store.wal.segments()),
            first_seq=store.wal.first_seq,
            last_seq=store.wal.last_seq,
        )

    def _runners(self, store: Store, writer: Writer, data_dir: Path) -> list[SinkRunner]:
        makers = sink_makers(self._settings, data_dir)
        for name in makers:
            # Durable from the start, so that a sink that has never answered shows up in the status.
            if store.state.cursor(name) is None:
                store.commit_cursor(name, store.cursor(name))

        def delivery(sink: Sink, progress: Progress) -> Delivery:
            return Delivery(
                sink,
                LogReader(store, writer),
                store,
                self._settings.flusher,
                run_sync=trio.to_thread.run_sync,
                now_ns=time.time_ns,
                rng=random.Random(),
                confirmed=lambda _name: self._moved.set(),
                grace_s=self._settings.server.stop_s_max * _DELIVERY_PART_OF_STOP,
                progress=progress,
            )

        runners = [SinkRunner(make, delivery, store, now_ns=time.time_ns) for make in makers.values()]
        standby = standby_names(self._settings)
        store.note_sinks(
            {runner.name: Presence(runner.required, runner.name in standby) for runner in runners},
            standby_names=standby,
        )
        for absent in absent_statuses(store):
            _log.error(
                "a required sink is absent from the settings; the log keeps its points",
                sink=absent.name,
                waiting_points=store.wal.points_total - absent.cursor.points,
                remedy=absent.last_error,
            )
        for runner in runners:
            runner.progress.wrote = self._metrics.sink_writes(runner.name)
        return runners

    async def _run_parts(self, store: Store, writer: Writer, runners: list[SinkRunner]) -> None:
        numbers = self._numbers(store, writer, runners)
        caretakers = Caretakers(store, writer, runners, self._settings.wal, self._moved, now_ns=time.time_ns)
        refusals = RefusalLog(
            monotonic_s=time.monotonic,
            failed=numbers.watch.failed_request,
            counted=numbers.watch.requests.refused,
        )
        admin = create_admin_app(
            readiness=numbers.not_ready,
            details=numbers.readiness,
            metrics=self._metrics.exposition(numbers.metrics),
            now=numbers.now,
            status=numbers.status,
            history=numbers.history,
            refusals=refusals,
        )
        server = self._settings.server
        # What both doors share: who checks large bodies, and the memory that bodies may hold.
        worker = Worker()
        checker, budget = Checker(server, in_worker=worker), BodyBudget(server.bodies_bytes_max)
        streams = self._streams = Streams(
            appender=writer,
            position=store.wal.positions.of,
            settings=server,
            now_ns=time.time_ns,
            checker=checker,
            budget=budget,
            observer=self._metrics.front,
            refusals=refusals,
        )
        app = Ingest(
            appender=writer,
            fallback=cast("AsgiCallable", admin),
            settings=server,
            now_ns=time.time_ns,
            checker=checker,
            budget=budget,
            streams=streams,
            observer=self._metrics.front,
            refusals=refusals,
        )
        async with trio.open_nursery() as background:
            background.start_soon(self._watch_end)
            background.start_soon(worker.run)
            await background.start(report_ignored_signals)
            background.start_soon(self._watch_failure, writer)
            async with trio.open_nursery() as sinks:
                for runner in runners:
                    sinks.start_soon(self._guarded, runner.run)
                async with trio.open_nursery() as wal:
                    await wal.start(writer.run)
                    wal.start_soon(self._guarded, caretakers.seal_by_age)
                    wal.start_soon(self._guarded, caretakers.truncate)
                    wal.start_soon(self._guarded, caretakers.save_positions)
                    wal.start_soon(self._guarded, caretakers.note_troubles)
                    wal.start_soon(self._guarded, numbers.watch.run)
                    wal.start_soon(self._guarded, _say_left_out, refusals)
                    commands = node_commands(
                        store,
                        LogReader(store, writer),
                        runners,
                        self._as_bound(),
                        streams=streams,
                        odd_times=lambda: odd_times_json(numbers.watch.odd_times()),
                        changed=self._moved.set,
                    )
                    control = partial(serve_control, operated=numbers.watch.operated)
                    await wal.start(control, store.data_dir, commands)
                    async with trio.open_nursery() as front:
                        addresses = await front.start(self._serve, app)
                        wal.start_soon(Collector().run)
                        self._ready(addresses[0])
                    wal.cancel_scope.cancel()
                for runner in runners:
                    runner.stop()
            background.cancel_scope.cancel()
        if writer.failure is not None:
            raise writer.failure
        if self._failure is not None:
            raise self._failure

    def _as_bound(self) -> Settings:
        """The settings with the port that was taken, where they leave it to the system."""
        server = self._settings.server
        bind = f"{server.bind.rpartition(':')[0]}:{self._sockets[0].getsockname()[1]}"
        return msgspec.structs.replace(self._settings, server=msgspec.structs.replace(server, bind=bind))

    def _numbers(self, store: Store, writer: Writer, runners: list[SinkRunner]) -> Numbers:
        def statuses() -> list[SinkStatus]:
            return [*(runner.status() for runner in runners), *absent_statuses(store)]

        watch = Watch(
            store,
            writer,
            statuses,
            self._metrics,
            self._settings.wal,
            now_ns=time.time_ns,
            monotonic_s=time.monotonic,
        )
        return Numbers(
            store,
            writer,
            self._settings,
            watch,
            statuses,
            not_ready=lambda: self._not_ready(writer),
            streams=lambda: self._streams.count if self._streams is not None else 0,
            now=lambda: datetime.now(UTC),
            monotonic_s=time.monotonic,
            started=datetime.now(UTC),
        )

    async def _guarded(self, part: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Runs a part; when it fails, the node stops in order first (requests are answered), and fails then."""
        try:
            await part(*arguments)
        except Exception as exc:
            self._failure = self._failure or exc
            self._stop(f"a part failed: {_our_own(exc)}")

    async def _serve(self, app: Ingest, task_status: trio.TaskStatus[list[str]]) -> None:
        await serve(
            app,
            settings=self._settings.server,
            shutdown=self._shutdown,
            sockets=self._sockets,
            on_unparsed=app.unparsed,
            make_room=app.budget.drop_stalled,
            task_status=task_status,
        )

    def _not_ready(self, writer: Writer) -> list[str]:
        refusal = writer.refusal()
        if refusal is not None:
            return [str(refusal)]
        return ["the server is shutting down"] if self._shutdown.is_set() else []

    async def _watch_end(self) -> None:
        """Starts the watchdog when the end begins, whatever begins it: a stop, or a part that raised."""
        try:
            await self._shutdown.wait()
        finally:
            self._watchdog.start()

    async def _watch_failure(self, writer: Writer) -> None:
        await writer.failed.wait()
        # The waiters have their 503 by now or get it during the graceful stop.
        self._stop(f"the WAL failed: {writer.failure}")

    def _stop(self, reason: str) -> None:
        _log.info("stopping", reason=reason)
        self._shutdown.set()
        if self._streams is not None:
            self._streams.stop()


def _warn_about_file_system(data_dir: Path) -> None:
    kind = file_system_of(data_dir)
    concern = concern_about(kind)
    if concern:
        _log.warning(
            "the data directory is on an unsuitable file system",
            data_dir=str(data_dir),
            file_system=kind,
            reason=concern,
        )


async def _say_left_out(refusals: RefusalLog) -> None:
    """Has the log of refusals say now and then what it was spared."""
    while True:
        await trio.sleep(CARETAKER_S)
        refusals.say_left_out()


def _our_own(error: BaseException) -> BaseException:
    """The first of our own errors in a group of groups; what was given when there is none."""
    if isinstance(error, BaseExceptionGroup):
        ours = error.subgroup(WalIngestError)
        if ours is not None:
            return _our_own(ours.exceptions[0])
    return error
