"""`wal-ingest replay`: write a range of what was accepted to a database once more. Changes nothing of the node."""

from __future__ import annotations

import enum
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wal_ingest.cli.node_settings import settings_of_node
from wal_ingest.cli.options import DataDirOption, JsonOption, NodeConfigOption, token_in
from wal_ingest.cli.times import TIME_HELP, parse_seqs, parse_time_ns
from wal_ingest.errors import ConfigError, OperatorNeeded

if TYPE_CHECKING:
    from wal_ingest.flusher.replay.places import Range, Select
    from wal_ingest.settings import InfluxDBSettings
    from wal_ingest.wal.reading import WalReader


class From(enum.StrEnum):
    """Where a replay reads."""

    AUTO = "auto"
    WAL = "wal"
    ARCHIVE = "archive"


EXAMPLE = "Example: wal-ingest replay --since 2h --dry-run"


def replay(
    config: NodeConfigOption = None,
    data_dir: DataDirOption = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="T", help=f"Accepted since then: {TIME_HELP}.", show_default=False),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option("--until", metavar="T", help="Accepted before it.  [default: now]", show_default=False),
    ] = None,
    seq: Annotated[
        str | None,
        typer.Option("--seq", metavar="A..B", help="The entries of these seqs instead.", show_default=False),
    ] = None,
    source: Annotated[
        From,
        typer.Option("--from", help="Where to read: auto is the WAL, and the archive for what is older."),
    ] = From.AUTO,
    to: Annotated[
        str, typer.Option("--to", metavar="SINK|URL", help="The configured InfluxDB, or another server.")
    ] = "influxdb",
    org: Annotated[
        str | None,
        typer.Option("--org", help="Organisation there.  [default: as configured]", show_default=False),
    ] = None,
    bucket: Annotated[
        str | None,
        typer.Option("--bucket", help="Bucket there.  [default: as configured]", show_default=False),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            help="File with the token for it. The configured one is never sent to another URL.",
            show_default=False,
        ),
    ] = None,
    measurement: Annotated[
        list[str] | None,
        typer.Option(
            "--measurement", metavar="M", help="Only this one; may be repeated.", show_default=False
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate", metavar="POINTS_PER_S", min=0.001, help="No faster than this.", show_default=False
        ),
    ] = None,
    in_flight: Annotated[
        int | None,
        typer.Option(
            "--in-flight",
            metavar="N",
            min=1,
            max=64,
            help="Writes under way at once.  [default: influxdb.in_flight_max]",
            show_default=False,
        ),
    ] = None,
    batch_points: Annotated[
        int | None,
        typer.Option(
            "--batch-points",
            metavar="N",
            min=1,
            max=100_000,
            help="Points in one write, at the most.  [default: flusher.batch_points_max]",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count: write nothing, contact nobody.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew where an earlier run was interrupted or done.")
    ] = False,
    rejected: Annotated[
        Path | None,
        typer.Option(
            "--rejected",
            metavar="FILE",
            help="Where rejected points go, as JSON lines.  [default: in the state directory]",
            show_default=False,
        ),
    ] = None,
    state_dir: Annotated[
        Path | None,
        typer.Option(
            "--state-dir",
            metavar="DIR",
            help="Where progress is kept.  [default: DATA_DIR/replay]",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write what was accepted in a range to the database once more, beside a running server or without one.

    No cursor moves. Interrupted, the same command goes on where it was. Exit code 1 when points were rejected or
    lost, the range reaches further back than what is kept, or it was interrupted.
    """
    from wal_ingest.cli.replay.run import Job, dry_run_of, run_job

    now_ns = time.time_ns()
    if rejected is not None and not rejected.absolute().parent.is_dir():
        raise ConfigError(f"{rejected}: there is no such directory", hint="make it, or name another file")
    settings = settings_of_node(config, data_dir=data_dir)
    target = target_of(
        settings.influxdb, to, org=org, bucket=bucket, token_file=token_file, in_flight=in_flight
    )
    directory = Path(settings.server.data_dir)
    with ExitStack() as stack:
        reader = _reader(directory, source, seqs=seq is not None)
        if reader is not None:
            stack.enter_context(reader)
        job = Job(
            data_dir=directory,
            reader=reader,
            span=_range(since, until, seq, now_ns=now_ns),
            relative=any(_is_age(text) for text in (since, until)),
            source=source.value,
            target=target,
            settings=settings,
            asked=_asked(directory, since, until, seq, source, target, measurement),
            select=_select(measurement),
            points_max=batch_points or settings.flusher.batch_points_max,
            rate=rate,
            now_ns=now_ns,
            restart=restart,
            state_dir=state_dir or directory / "replay",
            rejected=rejected,
            json=json,
        )
        code = dry_run_of(job) if dry_run else run_job(job)
    sys.exit(code)


def target_of(
    configured: InfluxDBSettings,
    to: str,
    *,
    org: str | None,
    bucket: str | None,
    token_file: Path | None,
    in_flight: int | None,
) -> InfluxDBSettings:
    """The settings of the sink that is written to. Another URL never gets the configured token. Raises ConfigError."""
    import msgspec

    changes: dict[str, object] = {}
    if "@" in to:
        raise ConfigError("the URL holds a user and password", hint="put USER:PASSWORD into a --token-file")
    if "://" in to:
        if to.rstrip("/") != configured.url.rstrip("/"):
            changes |= {"url": to, "token": "", "destination": "settings"}
    elif to != "influxdb":
        raise ConfigError(
            f"{to!r} is no sink to replay to", hint="say --to influxdb, or --to http://HOST:PORT"
        )
    elif not configured.url:
        raise ConfigError(
            "influxdb.url is not set",
            hint="set it, or name a server with --to http://HOST:PORT --bucket BUCKET",
        )
    if org is not None:
        changes |= {"org": org, "destination": "settings"}
    if bucket is not None:
        changes |= {"bucket": bucket, "destination": "settings"}
    if token_file is not None:
        changes["token"] = token_in(token_file)
    if in_flight is not None:
        changes["in_flight_max"] = in_flight
    return msgspec.structs.replace(configured, **changes)


def _range(since: str | None, until: str | None, seq: str | None, *, now_ns: int) -> Range:
    from wal_ingest.flusher.replay.places import Range

    if (since is None) == (seq is None) or (seq is not None and until is not None):
        raise ConfigError(
            "a replay needs a range: --since (and --until), or --seq",
            hint="for example --since 2h, or --seq 17..42",
        )
    if seq is not None:
        first, last = parse_seqs(seq)
        return Range(first_seq=first, last_seq=last)
    assert since is not None
    since_ns = parse_time_ns(since, now_ns=now_ns)
    until_ns = None if until is None else parse_time_ns(until, now_ns=now_ns)
    if until_ns is not None and until_ns <= since_ns:
        raise ConfigError(
            f"the range ends ({until}) before it begins ({since})", hint="an age counts from now back"
        )
    return Range(since_ns=since_ns, until_ns=until_ns)


def _is_age(text: str | None) -> bool:
    """Whether a time moves with the clock."""
    return text is not None and parse_time_ns(text, now_ns=0) != parse_time_ns(text, now_ns=1)


def _reader(data_dir: Path, source: From, *, seqs: bool) -> WalReader | None:
    """The WAL, held open; None when it is not read, or when there is none and the archive may do."""
    from wal_ingest.wal.reading import WalReader

    archive = (data_dir / "archive").is_dir()
    if source is From.ARCHIVE:
        if not archive:
            error = OperatorNeeded(f"there is no archive in {data_dir}")
            error.hint = "name the server's data directory with --data-dir"
            raise error
        return None
    if source is From.AUTO and archive and not seqs and not (data_dir / "wal").is_dir():
        return None
    return WalReader(data_dir)


def _select(measurements: list[str] | None) -> Select | None:
    if not measurements:
        return None
    from wal_ingest.points.select import Measurements

    of = Measurements(measurements).of

    def select(lines: bytes) -> tuple[bytes, int]:
        chosen = of(lines)
        return chosen.data, chosen.points

    return select


def _asked(
    data_dir: Path,
    since: str | None,
    until: str | None,
    seq: str | None,
    source: From,
    target: InfluxDBSettings,
    measurements: list[str] | None,
) -> dict[str, str]:
    """What makes a replay the same one when it is asked for again."""
    return {
        "data_dir": str(data_dir.resolve()),
        "since": since or "",
        "until": until or "",
        "seq": seq or "",
        "from": source.value,
        "url": target.url,
        "org": target.org,
        "bucket": target.bucket,
        "measurements": "\n".join(sorted(measurements or ())),
    }
