"""One run: the server under load, faults for a while, then peace, and an account of every point."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random

from ops.chaos.account import Found, take_account
from ops.chaos.clients import Clients, Stream
from ops.chaos.clock import Clock
from ops.chaos.disk import Disk
from ops.chaos.faults import FAULTS, World, pairs_of
from ops.chaos.node import Node, wait_tending
from ops.chaos.proxy import Proxy
from ops.chaos.report import Hit, Report
from ops.chaos.schedule import Strike, schedule
from ops.chaos.sector import Sector
from ops.chaos.stream_line import FORMS
from ops.chaos.traffic import SHAPES, Kind, Sent, points_of, shape_of
from tests.rigs.fleet import MS, Plan
from tests.rigs.needs import missing
from tests.rigs.processes import wait_until
from tests.rigs.service import COMMAND, to_influxdb
from tests.rigs.victoria_metrics import VictoriaMetrics
from wal_ingest.settings import WalSettings
from wal_ingest.wal.inspect import status
from wal_ingest.wal.lost import Lost
from wal_ingest.wal.salvage import Salvage, damaged_files
from wal_ingest.wal.store import Store

SINK = "influxdb"
_MIB = 1024 * 1024
# After a fault is over, a point must be accepted within this; and everything delivered within that.
_RECOVERED_S_MAX = 20.0
_DRAINED_S_MAX = 90.0
_VISIBLE_S_MAX = 8.0
# What a bad sector may cost: the entries on one page, which hold up to 1,000 points where they are large.
_SKIPPED_POINTS_MAX = 2_000
# Clients that send frames over a named stream, beside those that send requests.
_STREAMS = 2


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be run. `faults` are names of the table, "a+b" for two at once; empty means all."""

    seconds: float
    seed: int
    faults: tuple[str, ...] = ()
    clients: int = 6
    idle_s: float = 0.08
    command: Sequence[str | Path] = (COMMAND,)
    env: Mapping[str, str] = field(default_factory=dict)
    keep_confirmed_s: float | None = None

    def schedule(self) -> tuple[Iterator[Strike], dict[str, str]]:
        """The strikes, and the faults that cannot be struck here with what they need."""
        wanted = self.faults or tuple(FAULTS)
        lacking = {name: missing(fault.needs) if fault.needs else "" for name, fault in FAULTS.items()}
        alone = [names for names in wanted if not any(lacking[name] for name in names.split("+"))]
        assert alone, f"none of {wanted} can be struck here"
        strikes = schedule(
            alone,
            pairs=[] if self.faults else pairs_of(alone),
            seconds=self.seconds,
            seed=self.seed,
        )
        struck = {name for names in wanted for name in names.split("+")}
        return strikes, {name: f"needs {lacking[name]}" for name in struck if lacking[name]}


def run(order: Order, *, folder: Path, say: Callable[[str], None] = lambda _line: None) -> Report:
    """Runs an order; logs go to `folder`. Raises AssertionError when the harness itself cannot go on."""
    report = Report(order.seed, order.seconds)
    with ExitStack() as stack:
        below = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wal-ingest-chaos-")))
        (below / "database").mkdir()
        database = stack.enter_context(VictoriaMetrics(below / "database"))
        proxy = stack.enter_context(Proxy(database.port, seed=order.seed))
        plans = _plans(order)
        world = stack.enter_context(_world(order, below, folder, proxy, plans))
        _strike_and_heal(order, world, report, say)
        world.clients.stop()
        _drain(world, report)
        sent = world.clients.sent
        if unexpected := world.clients.unexpected:
            report.problems.append(f"{len(unexpected)} unexpected answers: " + "; ".join(unexpected[:3]))
        report.answers, report.met = world.clients.answers, proxy.struck
        _close(world, report)
        waiting, letters = _left_behind(world)
        set_aside = _set_aside(world)
        matches = [match for plan in plans for match in plan.matches]

        def all_there() -> bool:
            found = Found(database.values(*matches), waiting, letters, set_aside)
            report.account = take_account(sent, found)
            return report.account.wrong_counts["lost"] == 0 or time.monotonic() > visible_s

        # VictoriaMetrics shows new series only some seconds after it has answered, whatever it is told to flush.
        visible_s = time.monotonic() + _VISIBLE_S_MAX
        wait_until(all_there, "the database shows everything", s_max=120, every_s=1)
        bad_sectors = world.sector.struck if world.sector else 0
        _check_status(report, sent, waiting=len(waiting), letters=len(letters), bad_sectors=bad_sectors)
        report.conclude()
        if not report.green:
            _keep_evidence(world, folder)
    return report


def _plans(order: Order) -> list[Plan]:
    # Two hours back, so that points with times of their own and stamped ones stay apart.
    base_ns = (time.time_ns() - 7_200 * 1_000 * MS) // MS * MS
    small = Plan("chaos", base_ns, points=24, shapes=SHAPES, seed=order.seed, vary=True)
    timed = tuple(shape for shape in SHAPES if shape.timed)
    # Above 1,000 points a request becomes several entries.
    # Without times of their own: one that is stored twice is there at two times.
    framed = tuple(shape for shape in SHAPES if shape.form in FORMS and not shape.timed)
    return [
        small,
        replace(small, run="chaosbig", points=2_500, shapes=timed),
        replace(small, run="chaosstream", shapes=framed),
    ]


@contextmanager
def _world(order: Order, below: Path, logs: Path, proxy: Proxy, plans: list[Plan]) -> Iterator[World]:
    with ExitStack() as stack:
        disk = stack.enter_context(Disk(below)) if not missing("loop") else None
        clock = Clock(below) if not missing("cc") else None
        sector = Sector(below) if not missing("cc") else None
        preloaded = [each.environment for each in (clock, sector) if each is not None]
        env = {name: value for each in preloaded for name, value in each.items()}
        if preloaded:
            env["LD_PRELOAD"] = ":".join(each["LD_PRELOAD"] for each in preloaded)
        settings = to_influxdb(
            f"http://127.0.0.1:{proxy.port}",
            influxdb__write_s_max=2,
            flusher__batch_points_max=200,
            flusher__hold_retry_s=1,
            wal__segment_bytes_max=_MIB,
            wal__keep_confirmed_s=_keep_confirmed_s(order),
            wal__free_disk_bytes_min=4 * _MIB if disk else 0,
            log__level="info",
        )
        node = Node(
            (disk.path if disk else below) / "data",
            logs=logs,
            settings=settings,
            env={**order.env, **env},
            command=order.command,
        )
        stack.callback(node.end)
        wait_tending(node, 0)
        assert node.up, f"the server does not come up: {node.ends}"
        small, big, framed = plans
        streams = [Stream(small, number, order.idle_s) for number in range(order.clients)]
        framing = [Stream(framed, number, order.idle_s, is_stream=True) for number in range(_STREAMS)]
        clients = Clients(
            [*streams, Stream(big, 0, 2.0), *framing],
            port=lambda: node.port,
            offsets_ns=clock.range_ns if clock else lambda _since_s: (0, 0),
        )
        yield World(node, proxy, stack.enter_context(clients), disk, clock, sector)


def _keep_confirmed_s(order: Order) -> float:
    """As ordered, or drawn: with 0 segments go the moment they may, and with the default hardly ever."""
    drawn = Random(f"keep/{order.seed}").choice([0, 2, 300])
    return drawn if order.keep_confirmed_s is None else order.keep_confirmed_s


# -- faults ---------------------------------------------------------------------------------------------


def _strike_and_heal(order: Order, world: World, report: Report, say: Callable[[str], None]) -> None:
    """Strikes until the time is over and every fault of the first round was struck."""
    strikes, report.not_struck = order.schedule()
    dice = Random(f"details/{order.seed}")
    began_s = time.monotonic()
    world.node.began_s = began_s
    for strike in strikes:
        if time.monotonic() - began_s >= order.seconds and not strike.first_round:
            break
        wait_tending(world.node, strike.pause_s)
        _strike(strike, world, report, dice, began_s, say)
        acked = world.clients.acked_so_far
        healed_s = time.monotonic()

        def recovered(acked: int = acked, healed_s: float = healed_s) -> bool:
            world.node.tend()
            return world.clients.acked_so_far > acked or time.monotonic() - healed_s > _RECOVERED_S_MAX

        wait_until(recovered, "the server takes points again", s_max=_RECOVERED_S_MAX + 60)
        if world.clients.acked_so_far == acked:
            report.problems.append(
                f"no point was accepted within {_RECOVERED_S_MAX:g} s after {' and '.join(strike.faults)}"
                f" at {healed_s - began_s:.0f} s"
            )


def _strike(
    strike: Strike, world: World, report: Report, dice: Random, began_s: float, say: Callable[[str], None]
) -> None:
    with ExitStack() as healing:
        for name in strike.faults:
            at_s = time.monotonic()
            detail = healing.enter_context(FAULTS[name].strike(world, dice))
            wait_tending(world.node, strike.lasts_s / len(strike.faults))
            report.hits.append(Hit(name, round(at_s - began_s, 1), round(time.monotonic() - at_s, 1), detail))
            say(f"{at_s - began_s:6.1f} s  {name:<14} {detail}")


# -- peace ----------------------------------------------------------------------------------------------


def _drain(world: World, report: Report) -> None:
    """Waits until nothing waits for the sink; whatever still does is found by the account."""
    began_s = time.monotonic()

    def drained_or_late() -> bool:
        world.node.tend()
        if time.monotonic() - began_s > _DRAINED_S_MAX:
            return True
        sink = status(world.node.service.data_dir, now_ns=time.time_ns()).sinks.get(SINK)
        if sink is None or sink.waiting_points:
            return False
        report.drained_s = round(time.monotonic() - began_s, 1)
        return True

    wait_until(drained_or_late, "everything is delivered", s_max=_DRAINED_S_MAX + 60, every_s=0.25)
    if report.drained_s is None:
        report.problems.append(f"stuck: points still wait {_DRAINED_S_MAX:g} s after all faults are over")


def _close(world: World, report: Report) -> None:
    """Stops the server in an orderly way, and notes how it lived."""
    node = world.node
    if node.up:
        if (ready := node.service.ready()) != 200:
            report.problems.append(f"/readyz answers {ready} after all faults are over")
        code = node.stop()
        if code != 0:
            report.problems.append(f"exit code {code} after SIGTERM")
    else:
        report.problems.append("the server is not running at the end")
    report.starts = node.starts
    report.ends = [asdict(end) for end in node.ends]
    report.problems += [f"at {end.at_s} s: {end.what}" for end in node.ends if not end.excused_by]
    report.status = node.service.status()


def _left_behind(world: World) -> tuple[list[bytes], list[bytes]]:
    """The lines that wait behind the cursor, and those of the dead letters; the server is stopped."""
    store = Store(world.node.service.data_dir, WalSettings(), now_ns=time.time_ns)
    try:
        waiting: list[bytes] = []
        seq = store.cursor(SINK).seq
        while entries := store.wal.read(seq, bytes_max=_MIB):
            waiting += [line for entry in entries for line in entry.lines().splitlines(keepends=True)]
            seq = entries[-1].seq
        return waiting, [letter.line for letter in store.state.dead_letters(SINK)]
    finally:
        store.close()


def _set_aside(world: World) -> list[bytes]:
    """The lines in segments that were set aside: of these, the ones on a bad sector may be missing in the database."""
    files = damaged_files(world.node.service.data_dir / "wal")
    rescue = Salvage([file.path for file in files if file.is_segment])
    try:
        entries = [entry for each in rescue.segments for entry in rescue.read(each)]
        return [
            line
            for entry in entries
            if not isinstance(entry, Lost)
            for line in entry.lines().splitlines(keepends=True)
        ]
    finally:
        rescue.close()


def _check_status(
    report: Report, sent: Sequence[Sent], *, waiting: int, letters: int, bad_sectors: int
) -> None:
    """`wal status` says the same as what is there."""
    told = report.status
    sink = told["sinks"][SINK]
    tried = sum(
        one.tries * len(points_of(one.plan, one.client, one.number, one.kind))
        for one in sent
        if one.kind is not Kind.BROKEN or shape_of(one.plan, one.number).form == "v1"
    )
    checks = {
        "waiting points": (sink["waiting_points"], waiting),
        "parked points": (sink["parked"], letters),
        "the last seq": (sink["cursor_seq"] + sink["waiting_entries"], told["last_seq"]),
        "unaccounted points": (sink["unaccounted_points"], 0),
        "since, confirmed, parked, skipped and waiting": (
            sum(
                sink[part]
                for part in ("since_points", "confirmed_points", "parked", "skipped_points", "waiting_points")
            ),
            told["points_accepted"],
        ),
    }
    for what, (said, counted) in checks.items():
        if said != counted:
            report.problems.append(f"wal status: {what}: it says {said}, counted are {counted}")
    damaged, skipped = len(told["damaged"]), sink["skipped_points"]
    if damaged > bad_sectors:
        report.problems.append(
            f"wal status: {damaged} damaged segments, {bad_sectors} sectors could not be read"
        )
    if not report.account.skipped <= skipped <= damaged * _SKIPPED_POINTS_MAX:
        report.problems.append(
            f"wal status: {skipped} points skipped, but {report.account.skipped} acknowledged ones are nowhere but in"
            f" {damaged} damaged segments"
        )
    if not report.account.acked <= told["points_accepted"] <= tried:
        report.problems.append(
            f"wal status: {told['points_accepted']} points accepted, but {report.account.acked} were"
            f" answered 2xx and {tried} were sent, repetitions included"
        )


def _keep_evidence(world: World, folder: Path) -> None:
    shutil.copytree(
        world.node.service.data_dir,
        folder / "data",
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("*.sock"),
    )
