"""The control socket: what a command asks, what the node answers, and what nobody may break."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import pwd
import socket
import stat
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
import trio
from structlog.testing import capture_logs

from tests.rigs.service import Service
from tests.wal.factories import Clock, open_store
from wal_ingest.acts import Act
from wal_ingest.control import CONTROL_NAME, READ_ONLY, Command, NoControl, ask, serve_control
from wal_ingest.errors import ConfigError, OperatorNeeded, WalIngestError
from wal_ingest.http.stream.streams import Streams
from wal_ingest.service.commands import node_commands
from wal_ingest.service.log_reader import LogReader
from wal_ingest.settings import Settings
from wal_ingest.wal.cursor import Cursor, DeadLetter
from wal_ingest.wal.entry import Destination, Mark, NewEntry
from wal_ingest.wal.letters import id_of

T = TypeVar("T")


async def echo(arguments: Mapping[str, Any]) -> object:
    return {"said": arguments}


@asynccontextmanager
async def served(data_dir: Path, **commands: Command) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, data_dir, {"echo": echo, **commands})
        yield
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("fails", [False, True])
async def test_a_command_is_logged_as_a_warning_with_who_gave_it_what_and_how_many(
    tmp_path: Path, fails: bool
) -> None:
    async def skip(_arguments: Mapping[str, Any]) -> object:
        if fails:
            raise ConfigError("no sink is called x")
        return {"expired_points": 12}

    acts: list[Act] = []
    commands: dict[str, Command] = {"sink.skip": skip, "sinks": echo}
    async with trio.open_nursery() as nursery:
        with capture_logs() as lines:
            await nursery.start(functools.partial(serve_control, operated=acts.append), tmp_path, commands)
            await in_thread(lambda: ask(tmp_path, "sinks"))
            with pytest.raises(ConfigError) if fails else contextlib.nullcontext():
                await in_thread(lambda: ask(tmp_path, "sink.skip", sink="x", ids=[1, 2], far="y" * 500))
        nursery.cancel_scope.cancel()
    [line] = lines
    user = pwd.getpwuid(os.getuid()).pw_name
    assert (line["log_level"], line["command"]) == ("warning", "sink.skip")
    assert (line["user"], line["uid"], line["pid"]) == (user, os.getuid(), os.getpid())
    assert line["arguments"] == {"sink": "x", "ids": 2, "far": "y" * 100}
    assert line["outcome"] == ({} if fails else {"expired_points": 12})
    assert ("error" in line) == fails
    came = "failed: no sink is called x" if fails else "expired_points=12"
    assert [str(act) for act in acts] == [
        f"sink skip (sink=x, ids=2, far={'y' * 100}) by {user} (uid {os.getuid()}, pid {os.getpid()}): {came}"
    ]


Asked = tuple[str, dict[str, Any], dict[str, Any]]
# What each command of an operator is asked, and what the log says came of it.
OPERATED: list[Asked] = [
    ("sink.pause", {"sink": "archive"}, {}),
    ("sink.resume", {"sink": "archive"}, {}),
    ("sink.skip", {"sink": "influxdb", "through_seq": 2}, {"cursor_seq": 2, "expired_points": 1}),
    ("sink.forget", {"sink": "old"}, {"cursor_seq": 2, "expired_points": 1}),
    ("letters.remove", {"sink": "influxdb", "ids": 1, "written": False}, {"removed": 1}),
    ("stream.forget", {"client_id": "web-17"}, {"last_number": 1, "last_seq": 2, "was_connected": False}),
]


def test_all_that_an_operator_changes_on_a_node_is_a_warning_and_an_event_on_the_page(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    store = open_store(data_dir, Clock(time.time_ns()))
    for mark in (None, Mark("web-17", 1, 0)):
        store.wal.commit([[NewEntry(b"m f=1 1\n", 1, time.time_ns(), mark=mark)]])
    refused = DeadLetter("influxdb", 1, b"m f=1 1\n", "refused", 400, 5, Destination())
    store.commit_cursor("influxdb", Cursor(1, 1, parked=1), [refused])
    store.commit_cursor("old", Cursor(1, 1, confirmed=1))
    [letter] = store.state.dead_letters("influxdb")
    store.close()
    settings = {
        "influxdb.url": "http://127.0.0.1:9",
        "influxdb.bucket": "b",
        "archive.enabled": "on",
        "log.level": "warning",
    }
    with Service(data_dir, logs=tmp_path, settings=settings) as service:
        for command, arguments, _outcome in OPERATED:
            # The log and the page have the number of ids alone.
            given = arguments | {"ids": [id_of(letter)]} if "ids" in arguments else arguments
            ask(data_dir, command, **given)
        events = json.loads(service.get("/status.json"))["events"]
        assert service.stop() == 0
    lines = [json.loads(line) for line in (tmp_path / "serve-1.err").read_text().splitlines()]
    logged = [line for line in lines if "operator" in line["event"]]
    user, uid, pid = pwd.getpwuid(os.getuid()).pw_name, os.getuid(), os.getpid()
    assert [(line["command"], line["arguments"], line["outcome"]) for line in logged] == OPERATED
    assert {(line["level"], line["user"], line["uid"], line["pid"]) for line in logged} == {
        ("warning", user, uid, pid)
    }
    shown = [event["message"] for event in reversed(events) if event["kind"] == "operator"]
    assert len(shown) == len(OPERATED)
    for message, (command, _arguments, _outcome) in zip(shown, OPERATED, strict=True):
        assert message.startswith(f"{command.replace('.', ' ')} (")
        assert f" by {user} (uid {uid}, pid {pid}): " in message


def test_every_command_that_changes_something_is_among_them(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    commands = node_commands(
        store,
        cast("LogReader", None),
        [],
        Settings(),
        streams=cast("Streams", None),
        odd_times=dict,
        changed=lambda: None,
    )
    store.close()
    assert {command for command, *_ in OPERATED} == set(commands) - READ_ONLY


async def in_thread(work: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(work)


async def test_a_command_gets_its_arguments_and_its_answer_comes_back(tmp_path: Path) -> None:
    async with served(tmp_path):
        ids = [[number, number, number] for number in range(20_000)]
        assert await in_thread(lambda: ask(tmp_path, "echo", sink="a\n", ids=ids)) == {
            "said": {"sink": "a\n", "ids": ids}
        }
    assert not (tmp_path / CONTROL_NAME).exists()


async def test_only_the_nodes_own_user_may_open_the_socket(tmp_path: Path) -> None:
    async with served(tmp_path):
        assert stat.S_IMODE((tmp_path / CONTROL_NAME).stat().st_mode) == 0o600


async def test_a_socket_that_a_killed_node_left_is_no_hindrance(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / CONTROL_NAME))
    async with served(tmp_path):
        assert await in_thread(lambda: ask(tmp_path, "echo")) == {"said": {}}


async def test_a_data_directory_may_have_a_path_longer_than_a_socket_may(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    async with served(deep):
        assert await in_thread(lambda: ask(deep, "echo")) == {"said": {}}
    assert not (deep / CONTROL_NAME).exists()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConfigError("no such sink", hint="try another"), ConfigError),
        (OperatorNeeded("a person must look"), OperatorNeeded),
        (WalIngestError("not now"), WalIngestError),
    ],
)
async def test_an_error_of_the_node_is_the_commands_own_with_its_hint(
    tmp_path: Path, error: WalIngestError, kind: type[WalIngestError]
) -> None:
    async def fail(_arguments: Mapping[str, Any]) -> object:
        raise error

    async with served(tmp_path, fail=fail):
        with pytest.raises(WalIngestError) as told:
            await in_thread(lambda: ask(tmp_path, "fail"))
    assert type(told.value) is kind
    assert (str(told.value), told.value.hint) == (str(error), error.hint)


async def test_a_bug_in_a_command_is_told_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_arguments: Mapping[str, Any]) -> object:
        raise ZeroDivisionError("by zero")

    async with served(tmp_path, broken=broken):
        with pytest.raises(WalIngestError, match="ZeroDivisionError: by zero"):
            await in_thread(lambda: ask(tmp_path, "broken"))
        assert await in_thread(lambda: ask(tmp_path, "echo")) == {"said": {}}
    assert "in a way that is a bug" in caplog.text


@pytest.mark.parametrize(
    "request_line",
    [b"", b"\n", b"not json\n", b'{"command": "nothing"}\n', b"[1]\n", b'{"command": ["echo"]}\n'],
)
async def test_nonsense_is_refused_and_harms_nobody(tmp_path: Path, request_line: bytes) -> None:
    async with served(tmp_path):
        async with await trio.open_unix_socket(tmp_path / CONTROL_NAME) as stream:
            await stream.send_all(request_line)
            await stream.send_eof()
            answer = b"".join([part async for part in stream])
        assert b"does not know the command" in answer
        assert await in_thread(lambda: ask(tmp_path, "echo")) == {"said": {}}


async def test_a_client_that_goes_away_harms_nobody(tmp_path: Path) -> None:
    began = trio.Event()

    async def slow(_arguments: Mapping[str, Any]) -> object:
        began.set()
        await trio.testing.wait_all_tasks_blocked()
        return "x" * 1_000_000

    async with served(tmp_path, slow=slow):
        stream = await trio.open_unix_socket(tmp_path / CONTROL_NAME)
        await stream.send_all(b'{"command": "slow"}\n')
        await began.wait()
        await stream.aclose()
        assert await in_thread(lambda: ask(tmp_path, "echo")) == {"said": {}}


def test_without_a_node_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoControl, match=r"does not answer on control\.sock") as told:
        ask(tmp_path, "echo")
    assert "it may be starting" in told.value.hint


def test_who_may_not_open_the_socket_is_told_who_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_socket: socket.socket, _address: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(NoControl, match="Permission denied") as told:
        ask(tmp_path, "echo")
    assert "as the user that runs the node" in told.value.hint


@pytest.mark.parametrize("said", [b"", b'{"result": {"cut'])
async def test_a_node_that_ends_before_it_answers_is_told_as_that(tmp_path: Path, said: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / CONTROL_NAME))
        listening.listen()

        def hang_up() -> None:
            connection, _ = listening.accept()
            connection.recv(1000)
            connection.sendall(said)
            connection.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, hang_up)
            with pytest.raises(NoControl, match="it ended before it answered"):
                await in_thread(lambda: ask(tmp_path, "echo"))


async def test_a_directory_that_can_have_no_socket_costs_the_commands_and_not_the_node(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / CONTROL_NAME).mkdir()
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, tmp_path, {"echo": echo})
    assert "commands cannot reach this node" in caplog.text
    assert [str(each) for each in await trio.Path(tmp_path).iterdir()] == [str(tmp_path / CONTROL_NAME)]
