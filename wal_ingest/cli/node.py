"""What a command changes in a data directory: by way of the node that has it open, else by opening it for a moment."""

from __future__ import annotations

import os
import pwd
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wal_ingest.errors import ConfigError, NoWal
from wal_ingest.settings import Settings
from wal_ingest.wal.cursor import Cursor
from wal_ingest.wal.directory import exists, holder_of
from wal_ingest.wal.entry import Entry
from wal_ingest.wal.letters import LetterId
from wal_ingest.wal.recovery import SetAside
from wal_ingest.wal.state import STATE_NAME, StateView, read_state
from wal_ingest.wal.store import Store


def read_node_state(settings: Settings) -> StateView:
    """The state of the data directory.

    Raises `NoWal`, PermissionError when this user may not look, and as `read_state` does.
    """
    data_dir = Path(settings.server.data_dir)
    if not exists(data_dir / STATE_NAME):
        raise NoWal(data_dir)
    return read_state(data_dir / STATE_NAME)


def cursor_of(state: StateView, sink: str) -> Cursor:
    """A sink's cursor. Raises `ConfigError` naming those that there are."""
    if sink not in state.cursors:
        raise ConfigError(f"no sink is called {sink!r}", hint=f"there are: {', '.join(state.cursors)}")
    return state.cursors[sink]


def is_running(settings: Settings) -> bool:
    """Whether a process has the data directory open."""
    return holder_of(Path(settings.server.data_dir)) is not None


def operate(settings: Settings, command: str, **arguments: Any) -> Any:
    """Has a command of `service.commands` carried out, and gives what it gives; blocks.

    Raises `NoControl` when a node runs and does not answer, `ConfigError` as `must_not_be_root`, and what the command
    raises.
    """
    data_dir = Path(settings.server.data_dir)
    state = read_node_state(settings)
    if "sink" in arguments:
        cursor_of(state, arguments["sink"])
    if is_running(settings):
        # Here, because it brings Trio with it, which takes as long to import as all else that a command needs.
        from wal_ingest.control import ask

        return ask(data_dir, command, **arguments)
    must_not_be_root(data_dir)
    store = Store(data_dir, settings.wal, now_ns=time.time_ns)
    try:
        for moved in store.wal.damaged:
            _tell(moved)
        result = _OFFLINE[command](store, **arguments)
    finally:
        store.close()
    _record(command, arguments, result)
    return result


def _record(command: str, arguments: dict[str, Any], result: object) -> None:
    """Says on standard error who changed what: there is no node that could log it."""
    from wal_ingest.acts import act_of, own_peer

    sys.stderr.write(
        f"no node is running; changed on disk: {act_of(command, own_peer(), arguments, result)}\n"
    )


def must_not_be_root(data_dir: Path) -> None:
    """Before a data directory is opened to write: what root makes in it keeps another user's node from starting.

    Raises `ConfigError` naming that user.
    """
    try:
        owner = (data_dir / STATE_NAME).stat().st_uid
    except OSError:
        return  # there is no node yet
    if os.geteuid() != 0 or owner == 0:
        return
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = f"#{owner}"
    raise ConfigError(
        f"{data_dir} belongs to {name}, whose node could not open what root would make in it",
        hint=f"run the command as that user: sudo -u '{name}' wal-ingest …",
    )


def _tell(moved: SetAside) -> None:
    sys.stderr.write(f"damaged segment set aside: {moved.path}: {moved.reason}\n")


def _pause(store: Store, sink: str) -> object:
    store.state.pause(sink, now_ns=time.time_ns())
    return {}


def _resume(store: Store, sink: str) -> object:
    store.state.resume(sink)
    return {}


def _skip(store: Store, sink: str, through_seq: int | None) -> object:
    before = store.cursor(sink).expired

    def read(after_seq: int) -> list[Entry]:
        return store.read_past_damage(after_seq, bytes_max=1, seal=store.wal.seal, tell=_tell)

    cursor = store.expire(sink, through_seq, read=read)
    return {"cursor_seq": cursor.seq, "expired_points": cursor.expired - before}


def _forget(store: Store, sink: str) -> object:
    before = store.cursor(sink).expired

    def read(after_seq: int) -> list[Entry]:
        return store.read_past_damage(after_seq, bytes_max=1, seal=store.wal.seal, tell=_tell)

    cursor = store.forget_sink(sink, read=read)
    return {"cursor_seq": cursor.seq, "expired_points": cursor.expired - before}


def _remove_letters(store: Store, sink: str, ids: list[LetterId], written: bool) -> object:
    return {"removed": store.state.remove_letters(sink, ids, written=written)}


def _forget_stream(store: Store, client_id: str) -> object:
    position = store.forget_stream(client_id)
    return {"last_number": position.durable, "last_seq": position.last_seq, "was_connected": False}


_OFFLINE: dict[str, Callable[..., object]] = {
    "sink.pause": _pause,
    "sink.resume": _resume,
    "sink.skip": _skip,
    "sink.forget": _forget,
    "letters.remove": _remove_letters,
    "stream.forget": _forget_stream,
}
