"""A client that never loses its place: points in, receipts out, whatever the connection does between.

    async with open_client("ws://127.0.0.1:8400") as client:
        receipt = await client.write(line("cpu", {"host": "web-17"}, {"usage": 0.42}))

`wal_ingest.client.stream` is the low-level face, for whoever numbers and keeps frames himself. What a kind of URL needs
is imported when a client for it is opened.
"""

from wal_ingest.client.client import Client, Limits, Receipt, Status
from wal_ingest.client.delivery import State
from wal_ingest.client.errors import BufferFull, NotDelivered, PointsRefused, Replaced
from wal_ingest.client.opening import open_client
from wal_ingest.errors import PointError
from wal_ingest.points.line import line

__all__ = [
    "BufferFull",
    "Client",
    "Limits",
    "NotDelivered",
    "PointError",
    "PointsRefused",
    "Receipt",
    "Replaced",
    "State",
    "Status",
    "line",
    "open_client",
]
