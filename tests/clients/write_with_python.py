"""Writes with InfluxDB's Python client and prints what it was told, as JSON: `write_with_python.py URL`."""

# The client's package says that it is typed, and exports its names without saying so.
# mypy: disable-error-code="attr-defined, no-any-return, no-untyped-call"

from __future__ import annotations

import json
import sys

from influxdb_client import InfluxDBClient, Point, WritePrecision
from influxdb_client.client.write_api import SYNCHRONOUS, WriteOptions
from influxdb_client.rest import ApiException

BASE_NS = 1_700_000_000_000_000_000


def main(url: str) -> dict[str, object]:
    seen: dict[str, object] = {}
    with InfluxDBClient(url=url, token="any", org="any") as client:
        with client.write_api(write_options=SYNCHRONOUS) as write_api:
            write_api.write(bucket="any", record=_point("python_sync", 0))
            write_api.write(bucket="any", record=[_point("python_sync", n) for n in range(1, 100)])
            write_api.write(bucket="any", record="python_text,host=a value=1 1700000000", write_precision="s")
            try:
                write_api.write(bucket="any", record="this is no line protocol")
            except ApiException as exc:
                seen["refused"] = {"status": exc.status, "body": json.loads(exc.body)}
        failures: list[str] = []
        with client.write_api(
            write_options=WriteOptions(batch_size=500, flush_interval=1_000, max_retries=1),
            error_callback=lambda _conf, _data, exc: failures.append(str(exc)),
        ) as batching:
            for n in range(2_500):
                batching.write(bucket="any", record=_point("python_batching", n))
        seen["failures"] = failures
        seen["ping"] = client.ping()
        seen["version"] = client.version()
        seen["health"] = client.health().status
        seen["ready"] = client.ready().status
    with InfluxDBClient(url=url, token="any", org="any", enable_gzip=True) as client:
        client.write_api(write_options=SYNCHRONOUS).write(bucket="any", record=_point("python_gzip", 0))
    return seen


def _point(measurement: str, n: int) -> Point:
    return (
        Point(measurement)
        .tag("client", "python")
        .field("value", n + 0.5)
        .field("n", n)
        .field("even", n % 2 == 0)
        .field("text", f'say "{n}", please')
        .time(BASE_NS + n, WritePrecision.NS)
    )


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
