"""What `wal-ingest send` is told about CSV and formats, as the values that the rest works with."""

from __future__ import annotations

from collections.abc import Sequence

from wal_ingest.cli.send.formats import named_format
from wal_ingest.cli.send.pieces import How, unit_of
from wal_ingest.errors import ConfigError
from wal_ingest.points.csv_columns import FieldType
from wal_ingest.points.csv_points import CsvField, CsvMapping


def how_of(
    *,
    form: str | None,
    precision: str,
    batch_points: int,
    measurement: str,
    measurement_column: str,
    tags: Sequence[str],
    fields: Sequence[str],
    time: str,
    delimiter: str,
    columns: str,
) -> How:
    """What decides the bytes that are sent. Raises `ConfigError`."""
    unit = unit_of(precision)
    if len(delimiter := {"\\t": "\t", "tab": "\t"}.get(delimiter, delimiter)) > 1:
        raise ConfigError(f"{delimiter!r} is no delimiter", hint="give one character, or tab")
    return How(
        format=named_format(form) if form else None,
        precision=precision,
        records_max=batch_points,
        delimiter=delimiter,
        columns=tuple(name.strip() for name in columns.split(",")) if columns else (),
        mapping=CsvMapping(
            measurement=measurement,
            measurement_column=measurement_column,
            tags=tuple(_tag(text) for text in tags),
            fields=tuple(_field(text) for text in fields),
            time=time,
            unit=unit,
        ),
    )


def _tag(text: str) -> tuple[str, str]:
    column, _, key = text.partition("=")
    return column, key or column


def _field(text: str) -> CsvField:
    """COLUMN[=NAME][:TYPE]; what stands behind the last colon is a type only when it is one."""
    rest, colon, kind = text.rpartition(":")
    kinds = {each.value: each for each in FieldType}
    if not colon or kind not in kinds:
        rest, kind = text, ""
    column, _, name = rest.partition("=")
    return CsvField(column, name or column, kinds.get(kind))
