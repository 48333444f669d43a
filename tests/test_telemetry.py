"""Logs: readable or JSON, one line an event, and never a secret in them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from tests.rigs.processes import http_status, wait_until
from tests.rigs.service import Service
from wal_ingest.config import FIELDS, MASK
from wal_ingest.settings import InfluxDBSettings, LogSettings, ServerSettings, Settings
from wal_ingest.telemetry import Mask, configure_logging, secrets_in

SECRET = "s3cr3t/tok en=="


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The logging of the run is as before afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def logger() -> structlog.stdlib.BoundLogger:
    """One that nobody used before: they keep their configuration."""
    bound: structlog.stdlib.BoundLogger = structlog.get_logger("test")
    return bound


class Odd:
    """Something that is written by its repr."""

    def __repr__(self) -> str:
        return f"Odd({SECRET})"


def test_lines_are_json_where_nobody_reads_along(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogSettings())
    logger().info("recovered", segments=3, path=Path("/data/wal"))
    told = json.loads(capsys.readouterr().err)
    assert (told["event"], told["level"], told["segments"]) == ("recovered", "info", 3)
    assert told["timestamp"].endswith("Z")


def test_lines_are_readable_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogSettings(format="text"))
    logger().info("recovered", segments=3)
    told = capsys.readouterr().err
    assert "recovered" in told
    assert "segments=3" in told
    assert "{" not in told


def test_what_is_less_severe_than_asked_for_is_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogSettings(level="warning"))
    logger().info("quiet")
    logging.getLogger("library").info("quiet too")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_secret_is_masked_wherever_it_stands(capsys: pytest.CaptureFixture[str], form: str) -> None:
    configure_logging(LogSettings(format=form), secrets=[SECRET])
    log = logger()
    log.warning(f"with {SECRET} in it", plain=SECRET, deep={"a": [1, {"b": (f"Token {SECRET}",)}], SECRET: 1})
    log.warning("objects", error=ValueError(SECRET), odd=Odd(), many={SECRET}, none=None, path=Path(SECRET))
    log.warning("in an address", url="http://db/?p=s3cr3t%2Ftok%20en%3D%3D")
    logging.getLogger("library").warning("a library's %s: %r", "word", SECRET)
    try:
        raise ValueError(f"refused {SECRET}")
    except ValueError:
        log.exception("failed")
        logging.getLogger("library").exception("failed too")
    told = capsys.readouterr().err
    assert "s3cr3t" not in told
    assert told.count(MASK) >= 10
    assert "ValueError: refused" in told


def test_numbers_and_truth_stay_what_they_are_when_they_look_like_a_secret(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging(LogSettings(), secrets=["1", "True", ""])
    logger().info("event", number=1, truth=True, nothing=None)
    told = json.loads(capsys.readouterr().err)
    assert (told["number"], told["truth"], told["nothing"]) == (1, True, None)


def texts(value: object) -> list[str]:
    """Every text in an event."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in texts(part)]
    return [text for part in value for text in texts(part)] if isinstance(value, list) else []


@given(
    st.recursive(
        st.text("abc ", max_size=20) | st.integers() | st.none(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=8), inner),
    ),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
)
def test_no_secret_is_left_in_any_event(value: object, secrets: list[str]) -> None:
    masked = Mask(secrets)(None, "info", {"said": value})
    for secret in secrets:
        assert [text for text in texts(masked) if secret in text] == []


def test_every_setting_that_is_marked_secret_is_among_the_secrets() -> None:
    assert secrets_in(Settings()) == []
    assert secrets_in(Settings(influxdb=InfluxDBSettings(token="t-1"))) == ["t-1"]
    assert secrets_in(Settings(server=ServerSettings(write_token="w-1"))) == ["w-1"]
    assert [field.name for field in FIELDS.values() if field.secret] == [
        "server.write_token",
        "influxdb.token",
    ]


def test_a_running_node_never_writes_its_token(tmp_path: Path) -> None:
    token = "s3cr3t-token=="
    settings = {
        "influxdb.url": "http://127.0.0.1:9",
        "influxdb.token": token,
        "influxdb.bucket": "b",
        "log.level": "debug",
        "flusher.batch_wait_s_max": 0.1,
    }
    with Service(tmp_path / "data", logs=tmp_path, settings=settings) as service:
        service.post(
            "/metrics", b"m f=1 1\n", {"Content-Type": "text/plain", "Authorization": f"Token {token}"}
        )
        assert http_status(f"{service.url}/{token}") == 404
        log = tmp_path / "serve-1.err"
        wait_until(lambda: "unavailable" in log.read_text(), "the sink's trouble is in the log")
        assert service.stop() == 0
    assert "s3cr3t" not in log.read_text()
    assert f'"route": "/{MASK}"' in log.read_text()
