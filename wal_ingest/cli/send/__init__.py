"""`wal-ingest send`: points from files, or from a pipe, to a node."""

from __future__ import annotations

from typing import Annotated

import typer

from wal_ingest.cli.options import (
    GiveUpOption,
    JsonOption,
    SendersTokenFileOption,
    SendersTokenOption,
    give_up_s_of,
    token_of,
)
from wal_ingest.cli.output import count_text, points_text, print_json
from wal_ingest.errors import ConfigError

EXAMPLE = """Examples:

  wal-ingest send late.lp.gz

  tail -F app.lp | wal-ingest send - --to wss://node:8400

  wal-ingest send cpu.csv --measurement cpu --tag host --time at --precision s

  wal-ingest send big/*.ndjson --resume big.progress --skip-invalid bad.ndjson
"""


def send(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Files, plain or gzip; - for standard input."),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="URL", help="The node: ws:// and wss:// stream, http:// and https:// post."
        ),
    ] = "ws://127.0.0.1:8400",
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="lines, json, ndjson or csv.  [default: by the file's ending and first byte]",
            show_default=False,
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            metavar="UNIT",
            help="Unit of the times: ns, us, ms or s.  [default: ns for lines, ms for JSON]",
            show_default=False,
        ),
    ] = "",
    batch_points: Annotated[
        int, typer.Option("--batch-points", metavar="N", min=1, help="Lines, objects or rows in one frame.")
    ] = 1_000,
    rate: Annotated[
        float | None,
        typer.Option("--rate", metavar="POINTS_PER_S", min=0.001, help="Send no faster.", show_default=False),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="PROGRESS",
            help="Keep in this file how far it is, and go on from there.",
            show_default=False,
        ),
    ] = None,
    skip_invalid: Annotated[
        str | None,
        typer.Option(
            "--skip-invalid",
            metavar="REJECTED",
            help="Write what is no point to this file, with the reason, and go on.",
            show_default=False,
        ),
    ] = None,
    skip_lines: Annotated[
        int,
        typer.Option(
            "--skip-lines",
            metavar="N",
            min=0,
            help="Go on behind the first N lines (of a JSON array: objects) of the first file.",
        ),
    ] = 0,
    org: Annotated[str, typer.Option("--org", help="Organisation to store with the points.")] = "",
    bucket: Annotated[str, typer.Option("--bucket", help="Bucket to store with the points.")] = "",
    token: SendersTokenOption = "",
    token_file: SendersTokenFileOption = None,
    give_up_after: GiveUpOption = None,
    measurement: Annotated[
        str, typer.Option("--measurement", metavar="NAME", help="CSV: the measurement of all rows.")
    ] = "",
    measurement_column: Annotated[
        str,
        typer.Option("--measurement-column", metavar="COLUMN", help="CSV: the column with the measurement."),
    ] = "",
    tag: Annotated[
        list[str] | None,
        typer.Option(
            "--tag", metavar="COLUMN[=NAME]", help="CSV: a column that is a tag; may be given often."
        ),
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(
            "--field",
            metavar="COLUMN[=NAME][:TYPE]",
            help="CSV: a column that is a field, of type float, int, string or bool.  [default: all others]",
            show_default=False,
        ),
    ] = None,
    time_column: Annotated[
        str,
        typer.Option(
            "--time",
            metavar="COLUMN",
            help="CSV: the column with the time: numbers with --precision, or ISO 8601.",
        ),
    ] = "",
    delimiter: Annotated[
        str,
        typer.Option("--delimiter", metavar="CHAR", help="CSV: what sets cells apart.  [default: a comma]"),
    ] = "",
    columns: Annotated[
        str,
        typer.Option("--columns", metavar="A,B,C", help="CSV: the columns of a file without a header line."),
    ] = "",
    json: JsonOption = False,
) -> None:
    """Send points from files to a node: line protocol, JSON, NDJSON or CSV.

    Over ws:// every point is stored once, whatever breaks, and with --resume also when this command is killed. Over
    http:// those that were under way may be stored twice. A node that is away is waited for; one that waiting does not
    mend (a wrong address, token or certificate) ends it with exit code 2, and --give-up-after with 1.
    """
    from wal_ingest.cli.send.options import how_of
    from wal_ingest.cli.send.run import Wanted, run

    if resume is not None and skip_lines:
        raise ConfigError("--resume knows itself where to go on", hint="leave --skip-lines away")
    how = how_of(
        form=form,
        precision=precision,
        batch_points=batch_points,
        measurement=measurement,
        measurement_column=measurement_column,
        tags=tag or [],
        fields=field or [],
        time=time_column,
        delimiter=delimiter,
        columns=columns,
    )
    typed = {
        "--org": org,
        "--bucket": bucket,
        "--format": form or "",
        "--precision": precision,
        "--batch-points": str(batch_points),
        "--measurement": measurement,
        "--measurement-column": measurement_column,
        "--tag": " ".join(tag or []),
        "--field": " ".join(field or []),
        "--time": time_column,
        "--delimiter": delimiter,
        "--columns": columns,
    }
    sent = run(
        Wanted(
            files=files,
            to=to,
            how=how,
            asked=typed,
            points_per_s_max=rate,
            resume=resume,
            skip_invalid=skip_invalid,
            skip_lines=skip_lines,
            org=org,
            bucket=bucket,
            token=token_of(token, token_file),
            give_up_s=give_up_s_of(give_up_after),
        )
    )
    if json:
        print_json(sent)
        return
    more = f"; rejected: {count_text(sent.rejected, 'record', 'records')}" if sent.rejected else ""
    where = f", in {skip_invalid}" if sent.rejected and skip_invalid else ""
    typer.echo(
        f"{points_text(sent.points)} in {count_text(sent.frames, 'frame', 'frames')} taken by {sent.to}{more}{where}"
    )
