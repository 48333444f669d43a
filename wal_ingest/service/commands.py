"""What an operator's command may ask of the running node, over `wal_ingest.control`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Container, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import trio

from wal_ingest.config import FIELDS
from wal_ingest.control import Command
from wal_ingest.errors import ConfigError
from wal_ingest.flusher.status import SinkStatus
from wal_ingest.http.stream.streams import Streams
from wal_ingest.service.log_reader import LogReader
from wal_ingest.service.sinks import SinkRunner, absent_statuses
from wal_ingest.settings import Settings
from wal_ingest.wal.entry import Entry
from wal_ingest.wal.letters import LetterId
from wal_ingest.wal.store import Store, unknown_stream

# No command on the same machine needs it: points are sent over HTTP, with the sender's own.
_SETTINGS_NOT_TOLD = frozenset({"server.write_token"})


def node_commands(
    store: Store,
    log: LogReader,
    runners: Sequence[SinkRunner],
    settings: Settings,
    *,
    streams: Streams,
    odd_times: Callable[[], object],
    changed: Callable[[], None],
) -> dict[str, Command]:
    """Each command by its name; `changed` is called when segments may have become droppable."""
    by_name = {runner.name: runner for runner in runners}

    def runner_of(arguments: Mapping[str, Any]) -> SinkRunner:
        name = str(arguments.get("sink", ""))
        if name not in by_name:
            raise unknown_sink(name, by_name)
        return by_name[name]

    def read(after_seq: int) -> list[Entry]:
        return log.read(after_seq, bytes_max=1)

    async def sinks(_arguments: Mapping[str, Any]) -> object:
        statuses = [*(runner.status() for runner in runners), *absent_statuses(store)]
        return {status.name: live_status(status) for status in statuses}

    async def tell_settings(_arguments: Mapping[str, Any]) -> object:
        return settings_told(settings)

    async def tell_odd_times(_arguments: Mapping[str, Any]) -> object:
        return odd_times()

    async def pause(arguments: Mapping[str, Any]) -> object:
        await runner_of(arguments).pause()
        return {}

    async def resume(arguments: Mapping[str, Any]) -> object:
        await runner_of(arguments).resume()
        return {}

    async def skip(arguments: Mapping[str, Any]) -> object:
        runner, through_seq = runner_of(arguments), arguments.get("through_seq")
        before = store.cursor(runner.name).expired
        cursor = await runner.amend(lambda: store.expire(runner.name, through_seq, read=read))
        changed()
        return {"cursor_seq": cursor.seq, "expired_points": cursor.expired - before}

    async def forget(arguments: Mapping[str, Any]) -> object:
        name = str(arguments.get("sink", ""))
        check_forgettable(name, by_name, store.state.cursors())
        before = store.cursor(name).expired
        cursor = await trio.to_thread.run_sync(lambda: store.forget_sink(name, read=read))
        changed()
        return {"cursor_seq": cursor.seq, "expired_points": cursor.expired - before}

    async def remove_letters(arguments: Mapping[str, Any]) -> object:
        name = str(arguments.get("sink", ""))
        ids = [LetterId(*each) for each in arguments["ids"]]
        written = bool(arguments["written"])

        def change() -> int:
            return store.state.remove_letters(name, ids, written=written)

        if name not in by_name and store.state.cursor(name) is not None:
            # A sink that is off in the settings: nobody delivers to it, and its letters are there all the same.
            return {"removed": await trio.to_thread.run_sync(change)}
        return {"removed": await runner_of(arguments).amend(change)}

    async def open_streams(_arguments: Mapping[str, Any]) -> object:
        return {"connected": streams.connected()}

    async def forget_stream(arguments: Mapping[str, Any]) -> object:
        client_id = str(arguments.get("client_id", ""))
        if store.wal.positions.of(client_id) is None:
            raise unknown_stream(client_id)
        async with streams.kept_out(client_id) as was_open:
            position = await trio.to_thread.run_sync(store.forget_stream, client_id)
        return {"last_number": position.durable, "last_seq": position.last_seq, "was_connected": was_open}

    return {
        "sinks": sinks,
        "settings": tell_settings,
        "odd_times": tell_odd_times,
        "sink.pause": pause,
        "sink.resume": resume,
        "sink.skip": skip,
        "sink.forget": forget,
        "letters.remove": remove_letters,
        "streams": open_streams,
        "stream.forget": forget_stream,
    }


def settings_told(settings: Settings) -> dict[str, object]:
    """The effective settings by name, for a command that writes to a sink itself (`sink check`, `replay`).

    The sink's token is among them. The socket is open to the node's own user and root alone, who can read the token
    in the node's environment (/proc) and settings file anyway.
    """
    return {
        name: getattr(getattr(settings, field.section), field.key)
        for name, field in FIELDS.items()
        if name not in _SETTINGS_NOT_TOLD
    }


def unknown_sink(name: str, known: Mapping[str, object]) -> ConfigError:
    """The error for a sink that is not on, naming the nearest that is."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(known) or 'none'}"
    return ConfigError(f"no sink is called {name!r}", hint=hint)


def check_forgettable(name: str, present: Container[str], cursors: Mapping[str, object]) -> None:
    """Raises `ConfigError` when a sink cannot be forgotten: the settings name it, or there never was one."""
    if name in present:
        raise ConfigError(
            f"{name} is in the node's settings",
            hint=f"take it out of them and restart the node; or wal-ingest sink skip {name} --all",
        )
    if name not in cursors:
        raise unknown_sink(name, cursors)


def live_status(status: SinkStatus) -> dict[str, object]:
    """A sink's state as the node itself knows it, for `wal-ingest sink status`. Times are ISO 8601."""
    return {
        "required": status.required,
        "state": status.state.value,
        "since": _iso(status.since_ns),
        "last_error": status.last_error,
        "last_error_at": _iso(status.last_error_ns) if status.last_error_ns else None,
        "retried_writes": status.retried_writes,
        "in_flight": status.in_flight,
    }


def _iso(unix_ns: int) -> str:
    return datetime.fromtimestamp(unix_ns / 1e9, UTC).isoformat(timespec="seconds")
