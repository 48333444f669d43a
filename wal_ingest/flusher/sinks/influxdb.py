"""The InfluxDB sink: any server that speaks `POST /api/v2/write`.

The only importer of influxdb_client and urllib3, and that lazily: they take 0.3 s.

Of the client this uses its configured connection pool and nothing above it. `WriteService.post_write` costs
half as much CPU again for a batch that is compressed already, reads error bodies of any length, fails on
those that are not UTF-8, and its own retries are of no use here (their deadline is that of the process).

A server that is not InfluxDB may read some lines as other points and confirm them (`influxdb_servers`). Until an
answer proves that it is InfluxDB, every batch is decompressed and searched for such lines. One that has some is
written only once the server is known, by an empty write if need be, and as that server reads it.

Every write happens in a thread of the sink's own limiter, so that a slow database takes no threads from the
WAL. A write that is cancelled or overdue is abandoned: its thread ends with the socket's time-out, and what
became of the points is unknown until they are written again.
"""

from __future__ import annotations

import ssl
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

import trio

from wal_ingest import __version__
from wal_ingest.errors import ConfigError
from wal_ingest.flusher.batches import Batch
from wal_ingest.flusher.check import Check
from wal_ingest.flusher.log import NowNs, RunSync
from wal_ingest.flusher.outcome import (
    Confirmed,
    LinesRefused,
    Misconfigured,
    Outcome,
    Rejected,
    Unavailable,
    plain,
)
from wal_ingest.flusher.sinks.influxdb_answers import checks_of, outcome_of
from wal_ingest.flusher.sinks.influxdb_servers import Server, body_for, is_read_alike, server_of
from wal_ingest.flusher.sinks.transport_words import transport_reason
from wal_ingest.settings import InfluxDBSettings
from wal_ingest.wal.entry import Destination, Entry

if TYPE_CHECKING:
    import urllib3

# Bytes of an error's body that are read; a longer one costs its connection.
_ANSWER_BYTES_MAX = 64 * 1024
# Prepared request lines, one for each destination; emptied when there are more.
_PATHS_MAX = 1_024
# The socket's time-outs come first; this much later a write is given up even when the answer trickles in.
_OVERDUE_S = 1.0


@dataclass(frozen=True, slots=True)
class _Connection:
    """The client (kept for its pools' sake), the pool for the one server, and what urllib3 calls its errors."""

    client: Any
    pool: urllib3.HTTPConnectionPool
    timeout: urllib3.Timeout
    errors: Any


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a server answered; `headers` finds names in any case, the token is taken out of what it `said`."""

    status: int
    headers: Mapping[str, str]
    said: bytes


class InfluxDBSink:
    """Writes batches as they lie. `run_sync` is the thread door, `now_ns` the wall clock (for Retry-After dates)."""

    name = "influxdb"
    batch_points_max: int | None = None

    def __init__(self, settings: InfluxDBSettings, *, run_sync: RunSync, now_ns: NowNs) -> None:
        self.required = settings.required
        self.in_flight_max = settings.in_flight_max
        self._settings = settings
        self._run_sync = run_sync
        self._now_ns = now_ns
        self._token = settings.token.encode(errors="replace")
        self._limiter = trio.CapacityLimiter(settings.in_flight_max)
        self._connection: _Connection | None = None
        self._base_path = urlsplit(settings.url).path.rstrip("/")
        self._paths: dict[Destination, str] = {}
        self._own = Destination(settings.org, settings.bucket)
        self._server = Server(settings.server)
        self._headers = {
            "Content-Encoding": "gzip",
            "Content-Type": "text/plain; charset=utf-8",
            "Accept": "application/json",
            "User-Agent": f"wal-ingest/{__version__}",
        }
        if settings.token:
            self._headers["Authorization"] = f"Token {settings.token}"

    def group(self, entry: Entry) -> Hashable:
        """Entries share a batch when they go to the same bucket."""
        return self._destination(entry.destination)

    async def open(self, position: bytes | None) -> bytes | None:  # noqa: ARG002 - this sink remembers none
        """Prepares the connections; contacts nobody. Raises ConfigError for an address that cannot be one."""
        self._connection = await self._run_sync(_connect, self._settings)
        return None

    async def write(self, batch: Batch) -> Outcome:
        """One POST, no retries, no redirects.

        **Cancellation:** the POST is abandoned; whether its points were taken is unknown.
        """
        path = self._path(self._destination(batch.destination))
        with trio.move_on_after(self._settings.write_s_max + _OVERDUE_S):
            return await self._run_sync(
                self._post, path, batch, abandon_on_cancel=True, limiter=self._limiter
            )
        return Unavailable("the answer did not end in time", suspect=True)

    async def check(self) -> list[Check]:
        """Posts an empty body, which every server judges by token, organisation and bucket before it misses the points.

        **Cancellation:** the request is abandoned; it writes nothing.
        """
        answer = await self._run_sync(
            self._probe, self._path(self._own), abandon_on_cancel=True, limiter=self._limiter
        )
        if isinstance(answer, _Answer):
            checks = checks_of(self._settings.url, answer.status, answer.headers, answer.said)
            return [replace(each, found=self._clean(each.found)) for each in checks]
        return [Check("address", False, answer.reason)]

    async def aclose(self) -> None:
        """Closes idle connections; one that is still in use ends with its time-out."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.client.close()

    def _destination(self, asked: Destination) -> Destination:
        if self._settings.destination == "settings":
            return self._own
        return Destination(asked.org or self._own.org, asked.bucket or self._own.bucket)

    def _path(self, destination: Destination) -> str:
        path = self._paths.get(destination)
        if path is None:
            if len(self._paths) >= _PATHS_MAX:
                self._paths.clear()
            query = urlencode({"org": destination.org, "bucket": destination.bucket, "precision": "ns"})
            path = self._paths[destination] = f"{self._base_path}/api/v2/write?{query}"
        return path

    def _post(self, path: str, batch: Batch) -> Outcome:
        """Runs in a thread. Every foreign error becomes an outcome here."""
        alike = self._server is not Server.INFLUXDB and is_read_alike(batch)
        if not alike and self._server is Server.UNKNOWN:
            probed = self._identify(path)
            if probed is not None:
                return probed
        server = self._server
        body = batch.body if alike else body_for(server, batch)
        if isinstance(body, Rejected):
            return body
        answer = self._exchange(path, body, self._headers)
        if not isinstance(answer, _Answer):
            return answer
        outcome = self._outcome(answer)
        another = self._is_another_server(server, answer) and isinstance(outcome, Confirmed)
        if another and not alike and not is_read_alike(batch):
            # It may have read other points than the batch has. After a second write by its rules none is missing.
            return Unavailable(f"{self._settings.url} is another server now: {self._server.value}")
        return outcome

    def _outcome(self, answer: _Answer) -> Outcome:
        outcome = outcome_of(answer.status, answer.headers, answer.said, now_ns=self._now_ns())
        if isinstance(outcome, Confirmed):
            return outcome
        if isinstance(outcome, Rejected) and isinstance(outcome.hint, LinesRefused):
            lines = tuple(replace(each, reason=self._clean(each.reason)) for each in outcome.hint.refused)
            outcome = replace(outcome, hint=LinesRefused(lines))
        return replace(outcome, reason=self._clean(outcome.reason))

    def _probe(self, path: str) -> _Answer | Unavailable | Misconfigured:
        """Posts an empty body: every server answers it, and none writes anything."""
        headers = {name: value for name, value in self._headers.items() if name != "Content-Encoding"}
        return self._exchange(path, b"", headers)

    def _identify(self, path: str) -> Outcome | None:
        """Learns which server answers; gives the outcome where that failed for a reason that is not the empty body."""
        answer = self._probe(path)
        if not isinstance(answer, _Answer):
            return answer
        self._is_another_server(Server.UNKNOWN, answer)
        if self._server is Server.UNKNOWN and answer.status not in (400, 422):
            outcome = self._outcome(answer)
            if not isinstance(outcome, Confirmed):
                return outcome
        return None

    def _is_another_server(self, server: Server, answer: _Answer) -> bool:
        """Notes which server sent an answer, where it shows; true when that is another one than was assumed."""
        if self._settings.server != Server.UNKNOWN.value:
            return False
        found = server_of(answer.headers)
        if found is not Server.UNKNOWN:
            self._server = found
        return found not in (Server.UNKNOWN, server)

    def _exchange(
        self, path: str, body: bytes, headers: Mapping[str, str]
    ) -> _Answer | Unavailable | Misconfigured:
        """One POST: its whole answer, or the outcome when there was none."""
        connection = self._connection
        if connection is None:
            return Unavailable("the sink is closed")
        errors = connection.errors
        try:
            answer = connection.pool.urlopen(
                "POST",
                path,
                body=body,
                headers=headers,
                retries=False,
                redirect=False,
                timeout=connection.timeout,
                preload_content=False,
                decode_content=True,
            )
            with answer:
                # A 204 is read too: reading to the end is what closes the answer, and only a closed one may give
                # its connection back. Else another thread closes it while this one does, and one of them fails.
                said = answer.read(_ANSWER_BYTES_MAX)
                if len(said) < _ANSWER_BYTES_MAX:
                    answer.release_conn()
        except errors.SSLError as exc:
            if isinstance(exc.args[0] if exc.args else None, ssl.SSLCertVerificationError):
                return Misconfigured(self._clean(f"{self._settings.url}: {transport_reason(exc)}"))
            return Unavailable(transport_reason(exc), suspect=True)
        except (errors.NewConnectionError, errors.ConnectTimeoutError) as exc:
            # Nothing was sent: it cannot have been about this batch.
            return Unavailable(
                self._clean(f"{self._settings.url} cannot be reached: {transport_reason(exc)}")
            )
        except (errors.HTTPError, OSError) as exc:
            return Unavailable(transport_reason(exc), suspect=True)
        if self._token and self._token in said:  # a server that quotes the request back
            said = said.replace(self._token, b"***")
        if answer.status >= 300 and not _has_a_whole_head(answer.headers):
            return Unavailable(f"HTTP {answer.status}, cut off within its head", answer.status, suspect=True)
        return _Answer(answer.status, answer.headers, said)

    def _clean(self, message: str) -> str:
        """The message without the token, also as it stands in a URL; JSON and headers are decoded by now."""
        if self._settings.token:
            for form in (
                self._settings.token,
                quote(self._settings.token, safe=""),
                quote(self._settings.token),
            ):
                message = message.replace(form, "***")
        return plain(message)


def _has_a_whole_head(headers: Mapping[str, str]) -> bool:
    """Whether an answer says how its body ends, as every refusal does; one that broke off early does not.

    urllib3 hands over what came of a head. Such a 400 must not be read as "no InfluxDB says it like this".
    """
    return "content-length" in headers or "transfer-encoding" in headers


def _connect(settings: InfluxDBSettings) -> _Connection:
    import urllib3
    from influxdb_client.client.influxdb_client import InfluxDBClient

    parts = urlsplit(settings.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"influxdb.url: {settings.url!r} is no http:// or https:// address",
            hint="give it like http://localhost:8086",
        )
    if "@" in parts.netloc:
        raise ConfigError(
            "influxdb.url holds a user and password, which would end up in logs",
            hint="put them in influxdb.token, as USER:PASSWORD for InfluxDB 1.8",
        )
    if not (settings.token.isascii() and settings.token.isprintable()):
        raise ConfigError("influxdb.token holds characters that no HTTP header may carry")
    client = InfluxDBClient(
        url=f"{parts.scheme}://{parts.netloc}",
        token=settings.token,
        org=settings.org,
        connection_pool_maxsize=settings.in_flight_max,
        retries=False,
    )
    try:
        pool = client.api_client.rest_client.pool_manager.connection_from_url(settings.url)
    except (urllib3.exceptions.HTTPError, ValueError) as exc:
        raise ConfigError(f"influxdb.url: {settings.url!r}: {exc}") from exc
    timeout = urllib3.Timeout(total=settings.write_s_max, connect=min(10.0, settings.write_s_max))
    return _Connection(client, pool, timeout, urllib3.exceptions)
