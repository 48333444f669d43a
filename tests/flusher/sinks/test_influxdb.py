"""The InfluxDB sink against a server that fails on purpose: each answer becomes its row of the outcome table."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trio
import trio.testing

from tests.flusher.sinks.http_fake import Answer, FakeInfluxDB, fake_influxdb
from tests.flusher.sinks.test_archive import batch_of
from tests.flusher.twins import START_NS, MemoryLog, lines_of
from wal_ingest.errors import ConfigError
from wal_ingest.flusher.batches import Batch
from wal_ingest.flusher.outcome import (
    REASON_CHARS_MAX,
    BeyondRetention,
    Confirmed,
    Hint,
    LineRefused,
    LinesRefused,
    Misconfigured,
    Outcome,
    Rejected,
    TooLarge,
    Unavailable,
)
from wal_ingest.flusher.sinks.influxdb import InfluxDBSink
from wal_ingest.flusher.sinks.influxdb_answers import outcome_of, parse_retry_after
from wal_ingest.flusher.sinks.influxdb_refusals import hint_of
from wal_ingest.flusher.sinks.influxdb_servers import Server, body_for, is_read_alike, server_of
from wal_ingest.settings import InfluxDBSettings
from wal_ingest.wal.entry import Destination
from wal_ingest.wal.gzip_codec import compress

TOKEN = "s3cret-t0ken"
FOREIGN = "is this address a login page or a load balancer's default backend?"


@pytest.fixture
def fake() -> Iterator[FakeInfluxDB]:
    with fake_influxdb() as server:
        yield server


@asynccontextmanager
async def opened(url: str, **settings: Any) -> AsyncIterator[InfluxDBSink]:
    sink = InfluxDBSink(
        InfluxDBSettings(url=url, **{"token": TOKEN, "org": "o", "bucket": "b", **settings}),
        run_sync=trio.to_thread.run_sync,
        now_ns=lambda: START_NS,
    )
    await sink.open(None)
    try:
        yield sink
    finally:
        await sink.aclose()


async def outcome_for(fake: FakeInfluxDB, answer: Answer) -> Outcome:
    fake.answer = lambda _request: answer
    async with opened(fake.url) as sink:
        return await sink.write(batch_of(1))


async def test_a_batch_goes_out_as_it_lies_to_the_bucket_of_the_settings(fake: FakeInfluxDB) -> None:
    async with opened(fake.url + "/base/", org="acme & co", bucket="b/1") as sink:
        assert await sink.write(batch_of(1)) == Confirmed()
    (request,) = fake.requests
    assert request.lines == lines_of(1, 20)
    assert urlsplit(request.path).path == "/base/api/v2/write"
    assert parse_qs(urlsplit(request.path).query) == {
        "org": ["acme & co"],
        "bucket": ["b/1"],
        "precision": ["ns"],
    }
    assert request.headers["authorization"] == f"Token {TOKEN}"
    assert request.headers["content-encoding"] == "gzip"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(200), "HTTP 200 with an empty body: an InfluxDB's write is confirmed with 204"),
        (Answer(200, b"hello", {"Content-Type": "text/plain"}), f'HTTP 200 with "hello": {FOREIGN}'),
        (
            Answer(200, b'{"error":"database not found"}', {"Content-Type": "application/json"}),
            'HTTP 200 with an error: "database not found"',
        ),
        (
            Answer(200, b"<!doctype html>\n<title>Log\x00in</title>"),
            f'HTTP 200 with an HTML page titled "Log in": {FOREIGN}',
        ),
        (
            Answer(200, b"<p>Sign in", {"Content-Type": "application/xhtml+xml"}),
            f"HTTP 200 with an HTML page: {FOREIGN}",
        ),
        (Answer(201), "HTTP 201 with an empty body: an InfluxDB's write is confirmed with 204"),
        (Answer(202), "HTTP 202 with an empty body: an InfluxDB's write is confirmed with 204"),
        (Answer(203, b"\xff"), f'HTTP 203 with "\ufffd": {FOREIGN}'),
        (Answer(206, b"part"), f'HTTP 206 with "part": {FOREIGN}'),
    ],
)
async def test_only_204_confirms_and_every_other_success_holds_with_what_was_answered(
    fake: FakeInfluxDB, answer: Answer, reason: str
) -> None:
    assert await outcome_for(fake, answer) == Misconfigured(reason, answer.status)
    async with opened(fake.url) as sink:
        (check,) = await sink.check()
    assert not check.right
    assert reason in check.found


async def test_a_chunked_answer_of_a_default_backend_confirms_nothing(fake: FakeInfluxDB) -> None:
    chunked = Answer(200, b"5\r\nhello\r\n0\r\n\r\n", {"Transfer-Encoding": "chunked"})
    assert await outcome_for(fake, chunked) == Misconfigured(f'HTTP 200 with "hello": {FOREIGN}', 200)


async def test_connections_are_reused(fake: FakeInfluxDB) -> None:
    async with opened(fake.url) as sink:
        for seq in range(1, 6):
            await sink.write(batch_of(seq))
        fake.answer = lambda _request: Answer(400, b"bad")
        await sink.write(batch_of(6))
        await sink.write(batch_of(7))
    assert len(fake.requests) == 7
    assert fake.connections == 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(204), Confirmed()),
        (
            Answer(200, b"<html>log in</html>", {"Content-Type": "text/html"}),
            Misconfigured(f"HTTP 200 with an HTML page: {FOREIGN}", 200),
        ),
        (
            Answer(400, b'{"code":"invalid","message":"unable to parse \'m\': missing fields"}'),
            Rejected("HTTP 400: unable to parse 'm': missing fields", 400),
        ),
        (
            Answer(400, b'{"error":"partial write: field type conflict: input field \\"v\\" dropped=3"}'),
            Rejected('HTTP 400: partial write: field type conflict: input field "v" dropped=3', 400, 3),
        ),
        (
            Answer(
                422, b'{"code":"unprocessable entity","message":"partial write: beyond retention dropped=20"}'
            ),
            Rejected("HTTP 422: partial write: beyond retention dropped=20", 422, 20),
        ),
        (
            Answer(400, b'{"error":"database is required"}'),
            Misconfigured("HTTP 400: database is required", 400),
        ),
        (Answer(413, b"too big"), TooLarge("HTTP 413: too big", 413)),
        (
            Answer(401, b'{"message":"unauthorized access"}'),
            Misconfigured("HTTP 401: unauthorized access", 401, suspect=True),
        ),
        (Answer(403), Misconfigured("HTTP 403", 403, suspect=True)),
        (
            Answer(401),
            Misconfigured("HTTP 401: the token is not accepted (influxdb.token)", 401, suspect=True),
        ),
        (
            Answer(404, b'{"error":"database not found: \\"b\\""}'),
            Misconfigured('HTTP 404: database not found: "b"', 404, suspect=True),
        ),
        (
            Answer(429, b"slow", {"Retry-After": "7"}),
            Unavailable("HTTP 429: slow", 429, retry_after_s=7.0),
        ),
        (Answer(503), Unavailable("HTTP 503", 503)),
        (
            Answer(503, b"", {"Retry-After": "Sat, 22 Nov 2025 08:27:20 GMT"}),
            Unavailable("HTTP 503", 503, retry_after_s=START_NS // 10**9 * -1.0 + 1763800040.0),
        ),
        (Answer(500, b"boom"), Unavailable("HTTP 500: boom", 500, suspect=True)),
        (Answer(502, b"\xff\xfe"), Unavailable("HTTP 502: ��", 502, suspect=True)),
        (Answer(504), Unavailable("HTTP 504", 504, suspect=True)),
        (Answer(418, b"teapot"), Misconfigured("HTTP 418: teapot", 418)),
        (
            Answer(307, b"", {"Location": "https://elsewhere/"}),
            Misconfigured(
                "HTTP 307: redirected to https://elsewhere/; set the address that answers itself", 307
            ),
        ),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Answer) else "",
)
async def test_every_answer_has_its_outcome(fake: FakeInfluxDB, answer: Answer, expected: Outcome) -> None:
    assert await outcome_for(fake, answer) == expected
    assert len(fake.requests) == 1  # no retries and no redirects of the client's own


async def test_a_connection_closed_without_an_answer_is_unavailable_and_suspect(fake: FakeInfluxDB) -> None:
    outcome = await outcome_for(fake, Answer(body=None))
    assert isinstance(outcome, Unavailable)
    assert outcome.suspect


@pytest.mark.parametrize("status", [400, 401, 404, 413, 500, 503])
async def test_an_answer_cut_off_within_its_head_says_nothing_but_that(
    fake: FakeInfluxDB, status: int
) -> None:
    outcome = await outcome_for(fake, Answer(status, cut=True))
    assert isinstance(outcome, Unavailable)
    assert outcome.suspect


async def test_a_server_that_is_away_is_unavailable_without_suspicion() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with opened(f"http://127.0.0.1:{port}") as sink:
        outcome = await sink.write(batch_of(1))
    assert isinstance(outcome, Unavailable)
    assert not outcome.suspect
    assert "cannot be reached" in outcome.reason


async def test_a_server_that_does_not_answer_in_time_is_unavailable(fake: FakeInfluxDB) -> None:
    go_on = threading.Event()

    def late(_request: object) -> Answer:
        go_on.wait(10)
        return Answer()

    fake.answer = late
    async with opened(fake.url, write_s_max=0.05) as sink:
        outcome = await sink.write(batch_of(1))
    go_on.set()
    assert isinstance(outcome, Unavailable)
    assert "imeout" in outcome.reason or "timed out" in outcome.reason or "in time" in outcome.reason


async def test_a_cancelled_write_is_abandoned_at_once(fake: FakeInfluxDB) -> None:
    go_on, began = threading.Event(), threading.Event()

    def late(_request: object) -> Answer:
        began.set()
        go_on.wait(10)
        return Answer()

    fake.answer = late
    async with opened(fake.url) as sink:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sink.write, batch_of(1))
                await trio.to_thread.run_sync(began.wait)
                scope.cancel()
        assert scope.cancelled_caught
    go_on.set()
    assert len(fake.requests) == 1


async def test_the_token_is_never_in_a_reason(fake: FakeInfluxDB) -> None:
    fake.answer = lambda request: Answer(
        400, b'{"message":"cannot parse: ' + request.headers["authorization"].encode() + b'"}'
    )
    async with opened(fake.url) as sink:
        outcome = await sink.write(batch_of(1))
    assert outcome == Rejected("HTTP 400: cannot parse: Token ***", 400)


@pytest.mark.parametrize(
    "said",
    [
        Answer(401, b'{"message":"no such token: s3\\/cret+=="}'),
        Answer(401, b'{"message":"no such token: s3\\u002fcret+\\u003d="}'),
        Answer(404, b'{"message":"not found: /login?token=s3%2Fcret%2B%3D%3D"}'),
        Answer(404, b'{"message":"not found: /login?token=s3/cret%2B%3D%3D"}'),
        Answer(302, b"", {"Location": "http://elsewhere/?token=s3/cret+=="}),
        Answer(400, b"", {"X-Influxdb-Error": "unauthorized: s3/cret+=="}),
    ],
)
async def test_the_token_is_never_in_a_reason_however_the_server_writes_it(
    fake: FakeInfluxDB, said: Answer
) -> None:
    fake.answer = lambda _request: said
    async with opened(fake.url, token="s3/cret+==") as sink:
        outcome = await sink.write(batch_of(1))
        told = [outcome.reason if not isinstance(outcome, Confirmed) else ""]
        told += [each.found for each in await sink.check()]
    assert "***" in told[0]
    assert not [text for text in told if "cret" in text]


async def test_reasons_are_bounded_however_much_the_server_says(fake: FakeInfluxDB) -> None:
    outcome = await outcome_for(fake, Answer(400, b'{"error":"' + b"line\\n" * 1_000_000 + b'"}'))
    assert isinstance(outcome, Rejected)
    assert len(outcome.reason) <= REASON_CHARS_MAX + 20
    assert "\n" not in outcome.reason


NOT_INFLUXDB = {
    "a TLS port of a Go program": (400, {}, b"Client sent an HTTP request to an HTTPS server.\n"),
    "a TLS port of nginx": (
        400,
        {"content-type": "text/html"},
        b"<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head></html>",
    ),
    "a proxy without words": (400, {}, b""),
    "a JSON of another kind": (422, {}, b'["message"]'),
    "a JSON whose message is no text": (400, {}, b'{"message": {"error": 1}}'),
    "InfluxDB 2 without an organisation": (
        400,
        {"x-platform-error-code": "invalid"},
        b'{"code":"invalid","message":"Please provide either orgID or org"}',
    ),
    "VictoriaMetrics at another path": (400, {}, b'unsupported path requested: "/nonsense"'),
}


@pytest.mark.parametrize("answer", NOT_INFLUXDB.values(), ids=NOT_INFLUXDB)
def test_a_refusal_that_judges_no_points_is_a_misconfiguration(
    answer: tuple[int, dict[str, str], bytes],
) -> None:
    assert isinstance(outcome_of(*answer, now_ns=0), Misconfigured)


INFLUXDB_LIKE = {
    "1.x": ({"x-influxdb-version": "1.8"}, b'{"error":"unable to parse \'m\': missing fields"}'),
    "1.x, header alone": ({"x-influxdb-error": "unable to parse 'm': missing fields"}, b""),
    "2.x, code alone": ({"x-platform-error-code": "invalid"}, b""),
    "3.x": ({}, b'{"error":"partial write of line protocol occurred","data":[{"line_number":1}]}'),
    "an error too long to be read": ({}, b'{"code":"invalid","message":"unable to parse \'' + b"x" * 65_536),
}


@pytest.mark.parametrize("answer", INFLUXDB_LIKE.values(), ids=INFLUXDB_LIKE)
def test_a_refusal_in_a_form_of_influxdbs_is_about_points(answer: tuple[dict[str, str], bytes]) -> None:
    assert isinstance(outcome_of(400, *answer, now_ns=0), Rejected)


@pytest.mark.parametrize(
    ("words", "answer", "hint"),
    [
        (
            "Retention Policy Lower Bound at 2026-01-02T03:04:05.6Z",
            None,
            BeyondRetention(1_767_323_045_600_000_000),
        ),
        ("Retention Policy Lower Bound at 2026-13-45T03:04:05Z", None, BeyondRetention()),  # no such date
        (
            "",
            {"data": ["m v=1", {"line_number": 2, "error_message": "why"}]},
            LinesRefused((LineRefused("why", 2),)),
        ),
        ("", {"data": ["m v=1"]}, None),
    ],
)
def test_what_cannot_be_read_of_a_refusal_spoils_nothing_of_the_rest(
    words: str, answer: object, hint: Hint | None
) -> None:
    assert hint_of(words, answer) == hint


@pytest.mark.parametrize("server", Server)
def test_a_body_that_is_no_gzip_is_sent_as_it_is_for_the_server_to_refuse(server: Server) -> None:
    batch = replace(batch_with(ODD), body=b"no gzip")
    assert is_read_alike(batch)
    assert body_for(server, batch) == batch.body


def test_victoriametrics_plain_refusal_needs_the_evidence_of_neighbours() -> None:
    body = b"cannot read gzipped influx line protocol data: unexpected EOF\n"
    outcome = outcome_of(400, {"x-influxdb-version": "1.8.0"}, body, now_ns=0)
    assert isinstance(outcome, Unavailable)
    assert outcome.suspect


@pytest.mark.parametrize(
    ("said", "about_points"),
    [
        ("Bad Request", False),
        ("invalid request", False),
        ("unable to parse 'm'", True),
        ("field type conflict", True),
        ("points beyond retention policy", True),
        ("failed to parse line protocol: errors encountered on line(s):", True),
    ],
)
def test_it_is_known_whether_a_refusal_names_what_a_point_has(said: str, about_points: bool) -> None:
    outcome = outcome_of(400, {}, b'{"message":"%s"}' % said.encode(), now_ns=0)
    assert isinstance(outcome, Rejected)
    assert outcome.about_points is about_points


@pytest.mark.parametrize(
    ("message", "dropped"),
    [
        ("partial write: field type conflict: m dropped=5", 5),
        ("failure writing points to database: partial write: points beyond retention policy dropped=7", 7),
        ("partial write: unable to parse 'net dropped=5000': bad dropped=0", 0),
        ("unable to parse 'net,host=a dropped=5000': missing fields", None),
        ("unable to parse 'net,a=partial write: dropped=5000", None),
        ("partial write: unable to parse 'net dropped=5000'", None),
    ],
)
def test_a_senders_own_dropped_is_not_taken_for_the_servers_count(message: str, dropped: int | None) -> None:
    outcome = outcome_of(400, {}, b'{"error":"%s"}' % message.encode(), now_ns=0)
    assert isinstance(outcome, Rejected)
    assert outcome.dropped == dropped


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"message":"bad field \\ud83d"}', "HTTP 400: bad field ?"),
        (b'{"message":"bad field \\u0000\\u001b[31m\\u0085\\u2028x"}', "HTTP 400: bad field  [31m x"),
    ],
)
def test_a_reason_is_one_line_that_can_be_encoded(body: bytes, reason: str) -> None:
    outcome = outcome_of(400, {}, body, now_ns=0)
    assert isinstance(outcome, Rejected)
    assert outcome.reason.encode().decode() == reason


def test_a_senders_own_words_cannot_make_a_refusal_look_like_a_misconfiguration() -> None:
    body = b'{"message":"partial write: field type conflict: measurement \\"\\ndatabase is required\\" dropped=1"}'
    assert isinstance(outcome_of(400, {}, body, now_ns=0), Rejected)


async def test_batches_go_where_their_sender_said_when_the_settings_say_so(fake: FakeInfluxDB) -> None:
    entry = MemoryLog().append(20, destination=Destination("", "theirs"))
    async with opened(fake.url, destination="request") as sink:
        assert sink.group(entry) == Destination("o", "theirs")
    async with opened(fake.url) as sink:
        assert sink.group(entry) == Destination("o", "b")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"url": "ftp://h"}, "no http"),
        ({"url": "http://"}, "no http"),
        ({"url": "localhost:8086"}, "no http"),
        ({"url": "http://h:99999"}, "influxdb.url"),
        ({"url": "http://user:pw@h"}, "user and password"),
        ({"url": "http://h", "token": "a\r\nb"}, "token"),
    ],
)
async def test_an_address_or_token_that_cannot_work_is_refused_at_the_start(
    settings: dict[str, str], match: str
) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        async with opened(**settings):
            pass
    assert "pw@" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("0", 0.0),
        (" 120 ", 120.0),
        ("Sat, 22 Nov 2025 08:26:45 GMT", 5.0),
        ("Sat, 22 Nov 2025 08:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("1" * 50, None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, expected: float | None) -> None:
    assert parse_retry_after(value, START_NS) == expected


def test_the_client_library_is_imported_only_when_the_sink_is_opened() -> None:
    code = (
        "import sys, wal_ingest.flusher.sinks.influxdb as _;"
        "print('urllib3' in sys.modules, 'influxdb_client' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "False"]


async def test_an_answer_that_never_ends_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    async def hang(*_args: object, **_options: object) -> Any:
        await trio.sleep_forever()

    sink = InfluxDBSink(
        InfluxDBSettings(url="http://127.0.0.1:9", org="o", bucket="b"),
        run_sync=hang,
        now_ns=lambda: START_NS,
    )
    assert await sink.write(batch_of(1)) == Unavailable("the answer did not end in time", suspect=True)


async def test_a_sink_that_is_closed_takes_nothing(fake: FakeInfluxDB) -> None:
    async with opened(fake.url) as sink:
        pass
    assert await sink.write(batch_of(1)) == Unavailable("the sink is closed")
    assert fake.requests == []


async def test_a_certificate_that_cannot_be_trusted_is_an_operators_matter_and_other_trouble_is_not(
    fake: FakeInfluxDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(fake.url.replace("http:", "https:")) as sink:  # which answers in plain HTTP
        outcome = await sink.write(batch_of(1))
        assert isinstance(outcome, Unavailable)
        assert outcome.reason == "TLS failed: wrong version number"
        connection = sink._connection
        assert connection is not None

        def distrust(*_args: object, **_options: object) -> Any:
            raise connection.errors.SSLError(ssl.SSLCertVerificationError("self-signed certificate"))

        monkeypatch.setattr(connection.pool, "urlopen", distrust)
        outcome = await sink.write(batch_of(1))
        assert isinstance(outcome, Misconfigured)
        assert "self-signed certificate" in outcome.reason


async def test_more_destinations_than_are_remembered_still_go_where_they_should(
    fake: FakeInfluxDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wal_ingest.flusher.sinks.influxdb._PATHS_MAX", 2)
    async with opened(fake.url, destination="request", token="") as sink:
        for bucket in "abcab":
            batch = replace(batch_of(1), destination=Destination("", bucket))
            assert await sink.write(batch) == Confirmed()
    asked = [parse_qs(urlsplit(request.path).query)["bucket"] for request in fake.requests]
    assert asked == [[bucket] for bucket in "abcab"]


async def test_without_a_token_a_reason_is_said_as_it_is() -> None:
    async with opened("http://127.0.0.1:9", token="") as sink:
        outcome = await sink.write(batch_of(1))
    assert isinstance(outcome, Unavailable)
    assert "***" not in outcome.reason
    assert "cannot be reached" in outcome.reason


# -- servers that read lines otherwise ----------------------------------------------------------------------

VICTORIA_METRICS = {"X-Influxdb-Version": "1.8.0", "X-Server-Hostname": "db-1"}
INFLUXDB = {"X-Influxdb-Version": "1.8.10", "X-Influxdb-Build": "OSS"}
ORDINARY = b"cpu,host=a v=1 1\ncpu,host=b v=2 2\n"
ODD = b"cpu,host=a v=1 1\nm,p=C:\\\\dir v=1 2\n"
ODD_REWRITTEN = b"cpu,host=a v=1 1\nm,p=C:\\\\\\\\dir v=1 2\n"
UNREADABLE = b"cpu v=1 1\nm,__name__=x v=2 2\ncpu v=3 3\nm,__name__=y v=4 4\n"


def batch_with(lines: bytes) -> Batch:
    points = lines.count(b"\n")
    return replace(batch_of(1), points=points, body=compress(lines), raw_bytes=len(lines))


@pytest.mark.parametrize(
    ("headers", "server"),
    [
        (INFLUXDB, Server.INFLUXDB),
        ({"X-Influxdb-Version": "v2.7.4"}, Server.INFLUXDB),
        ({**INFLUXDB, "X-Server-Hostname": "a proxy's"}, Server.INFLUXDB),
        (VICTORIA_METRICS, Server.VICTORIA_METRICS),
        ({"X-Server-Hostname": "db-1"}, Server.VICTORIA_METRICS),
        ({"X-Influxdb-Version": "1.8.0"}, Server.UNKNOWN),
        ({}, Server.UNKNOWN),
    ],
)
def test_headers_tell_which_server_answers(headers: dict[str, str], server: Server) -> None:
    assert server_of({name.lower(): value for name, value in headers.items()}) is server


@pytest.mark.parametrize(
    ("headers", "written"), [(INFLUXDB, ODD), (VICTORIA_METRICS, ODD_REWRITTEN)], ids=["influxdb", "victoria"]
)
async def test_an_odd_batch_is_written_once_the_server_is_known_and_as_that_reads_it(
    fake: FakeInfluxDB, headers: dict[str, str], written: bytes
) -> None:
    fake.answer = lambda _request: Answer(204, headers=headers)
    async with opened(fake.url) as sink:
        assert await sink.write(batch_with(ODD)) == Confirmed()
        assert [request.lines for request in fake.requests] == [b"", written]
        assert await sink.write(batch_with(ODD)) == Confirmed()
    assert [request.lines for request in fake.requests[2:]] == [written]


async def test_an_ordinary_batch_goes_out_at_once_and_teaches_which_server_answers(
    fake: FakeInfluxDB,
) -> None:
    fake.answer = lambda _request: Answer(204, headers=VICTORIA_METRICS)
    async with opened(fake.url) as sink:
        await sink.write(batch_with(ORDINARY))
        await sink.write(batch_with(ODD))
    assert [request.lines for request in fake.requests] == [ORDINARY, ODD_REWRITTEN]


async def test_points_that_victoriametrics_cannot_read_are_refused_by_number_and_nothing_is_written(
    fake: FakeInfluxDB,
) -> None:
    async with opened(fake.url, server="victoriametrics") as sink:
        outcome = await sink.write(batch_with(UNREADABLE))
    assert isinstance(outcome, Rejected)
    assert outcome.dropped == 2
    assert outcome.about_points
    assert "__name__" in outcome.reason
    assert outcome.hint == LinesRefused(
        (LineRefused(outcome.reason, number=2), LineRefused(outcome.reason, number=4))
    )
    assert fake.requests == []


async def test_a_server_that_does_not_say_what_it_is_gets_only_what_both_read_alike(
    fake: FakeInfluxDB,
) -> None:
    async with opened(fake.url) as sink:
        outcome = await sink.write(batch_with(ODD))
        assert isinstance(outcome, Rejected)
        assert "set influxdb.server" in outcome.reason
        assert outcome.hint == LinesRefused((LineRefused(outcome.reason, number=2),))
        assert [request.lines for request in fake.requests] == [b""]
        assert await sink.write(batch_with(ORDINARY)) == Confirmed()
        assert await sink.write(batch_with(b"cpu v=.5,w=2. 1\n")) == Confirmed()
    assert fake.requests[-1].lines == b"cpu v=0.5,w=2.0 1\n"


@pytest.mark.parametrize("server", ["influxdb", "victoriametrics"])
async def test_the_setting_is_believed_whatever_the_headers_say(fake: FakeInfluxDB, server: str) -> None:
    fake.answer = lambda _request: Answer(204, headers={**INFLUXDB, **VICTORIA_METRICS})
    async with opened(fake.url, server=server) as sink:
        for _ in range(2):
            assert await sink.write(batch_with(ODD)) == Confirmed()
    written = {"influxdb": ODD, "victoriametrics": ODD_REWRITTEN}[server]
    assert [request.lines for request in fake.requests] == [written, written]


async def test_an_odd_batch_that_another_server_confirmed_is_written_again_by_its_rules(
    fake: FakeInfluxDB,
) -> None:
    headers = INFLUXDB
    fake.answer = lambda _request: Answer(204, headers=headers)
    async with opened(fake.url) as sink:
        await sink.write(batch_with(ODD))
        headers = VICTORIA_METRICS
        assert isinstance(await sink.write(batch_with(ODD)), Unavailable)
        assert await sink.write(batch_with(ODD)) == Confirmed()
        assert fake.requests[-1].lines == ODD_REWRITTEN
        headers = INFLUXDB
        assert await sink.write(batch_with(ORDINARY)) == Confirmed()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [(Answer(503), Unavailable), (Answer(401), Misconfigured), (Answer(body=None), Unavailable)],
    ids=["overloaded", "denied", "gone"],
)
async def test_no_point_is_refused_while_the_server_cannot_be_known(
    fake: FakeInfluxDB, answer: Answer, kind: type[Outcome]
) -> None:
    fake.answer = lambda _request: answer
    async with opened(fake.url) as sink:
        assert isinstance(await sink.write(batch_with(ODD)), kind)
    assert [request.lines for request in fake.requests] == [b""]
