"""What a replay remembers of itself survives, is replaced whole, and belongs to one process at a time."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from tests.flusher.twins import START_NS
from wal_ingest.errors import ConfigError, StorageFailed
from wal_ingest.flusher.replay.places import Place
from wal_ingest.flusher.replay.record import Record, ReplayRuns, Saved, replay_id
from wal_ingest.wal.cursor import DeadLetter
from wal_ingest.wal.entry import Destination
from wal_ingest.wal.lost import Lost


def saved(**changes: object) -> Saved:
    values: dict[str, object] = {
        "id": "abc",
        "asked": {"since": "2h"},
        "since_ns": START_NS,
        "until_ns": None,
        "first_seq": 1,
        "last_seq": 17,
        "started_ns": START_NS,
        "updated_ns": START_NS,
        **changes,
    }
    return Saved(**values)  # type: ignore[arg-type]


def letter(seq: int) -> DeadLetter:
    return DeadLetter("influxdb", seq, b"m v=1 17\n", "type conflict", 422, START_NS, Destination("o", "b"))


def test_what_was_saved_is_loaded_by_the_next_one(tmp_path: Path) -> None:
    record = Record(tmp_path / "replay", "abc")
    assert record.load() is None
    lost = Lost("f", 3, 4, None, "gone")
    told = saved(place=Place(source="wal", seq=9, accepted_ns=5), confirmed=40, lost=[lost])
    record.save(saved())
    record.save(told)
    record.close()
    again = Record(tmp_path / "replay", "abc")
    assert again.load() == told
    again.close()


def test_rejected_points_are_appended_with_their_reason(tmp_path: Path) -> None:
    record = Record(tmp_path, "abc")
    record.save(saved(), [letter(3)])
    record.save(saved(), [letter(0)])
    record.close()
    rows = [json.loads(line) for line in (tmp_path / "abc.rejected.jsonl").read_text().splitlines()]
    assert [row["seq"] for row in rows] == [3, None]
    assert rows[0] == {
        "line": "m v=1 17",
        "reason": "type conflict",
        "status": 422,
        "seq": 3,
        "org": "o",
        "bucket": "b",
        "rejected_ns": START_NS,
    }


def test_a_row_that_was_cut_short_spoils_none_behind_it(tmp_path: Path) -> None:
    rejected = tmp_path / "abc.rejected.jsonl"
    rejected.write_text('{"line":"m v=1')
    for seq in (3, 4):
        record = Record(tmp_path, "abc")
        record.save(saved(), [letter(seq)])
        record.close()
    cut, *rows = rejected.read_text().splitlines()
    assert cut == '{"line":"m v=1'
    assert [json.loads(row)["seq"] for row in rows] == [3, 4]


def test_a_second_process_is_told_that_the_replay_runs(tmp_path: Path) -> None:
    record = Record(tmp_path, "abc")
    with pytest.raises(ReplayRuns, match="running already"):
        Record(tmp_path, "abc")
    other = Record(tmp_path, "other")
    other.close()
    record.close()
    Record(tmp_path, "abc").close()


def test_beginning_anew_forgets_the_place_and_keeps_the_rejected_points_once_more(tmp_path: Path) -> None:
    record = Record(tmp_path, "abc")
    record.begin_anew()
    record.save(saved(), [letter(3)])
    record.begin_anew()
    assert record.load() is None
    assert not record.rejected_path.exists()
    assert (tmp_path / "abc.rejected.jsonl.before").exists()
    record.close()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"format": 99}', "format 99 is not known"),
        (b"{", "cannot be read"),
        (b"[]", "cannot be read"),
        (b"{}", "cannot be read"),
        (b'{"format": 1}', "cannot be read"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_and_not_replaced(
    tmp_path: Path, text: bytes, reason: str
) -> None:
    record = Record(tmp_path, "abc")
    record.path.write_bytes(text)
    with pytest.raises(ConfigError, match=reason) as raised:
        record.load()
    assert "--restart" in raised.value.hint
    assert record.path.read_bytes() == text
    record.close()


def test_a_directory_that_cannot_be_used_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "taken.lock").mkdir()
    for directory, name in ((tmp_path / "file" / "below", "abc"), (tmp_path, "taken")):
        with pytest.raises(ConfigError, match="cannot be kept") as raised:
            Record(directory, name)
        assert "--state-dir" in raised.value.hint


def test_what_cannot_be_read_written_or_removed_is_named(tmp_path: Path) -> None:
    record = Record(tmp_path, "abc")
    record.path.mkdir()
    with pytest.raises(StorageFailed, match="cannot be read"):
        record.load()
    with pytest.raises(StorageFailed, match="cannot be written") as raised:
        record.save(saved())
    assert "same command again" in raised.value.hint
    with pytest.raises(StorageFailed, match="cannot be removed"):
        record.begin_anew()
    record.rejected_path.mkdir()
    with pytest.raises(StorageFailed, match="cannot be written"):
        record.save(saved(), [letter(1)])
    record.close()


def test_the_place_is_not_saved_when_the_rejected_points_before_it_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Record(tmp_path, "abc")
    record.save(saved())

    def full(fd: int, data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageFailed, match="No space left"):
        record.save(saved(confirmed=5), [letter(1)])
    monkeypatch.undo()
    assert record.load() == saved()
    record.close()


def test_the_name_of_a_replay_is_that_of_its_command() -> None:
    assert replay_id({"since": "2h", "to": "x"}) == replay_id({"to": "x", "since": "2h"})
    assert replay_id({"since": "2h"}) != replay_id({"since": "3h"})


@pytest.mark.parametrize("elsewhere", [False, True], ids=["its own", "named by somebody"])
def test_a_link_is_followed_only_where_somebody_named_the_file_of_rejected_points(
    tmp_path: Path, elsewhere: bool
) -> None:
    record = Record(tmp_path / "state", "abc")
    if elsewhere:
        record.rejected_path = tmp_path / "rejected"
    target = tmp_path / "target"
    record.rejected_path.symlink_to(target)
    if elsewhere:
        record.save(saved(), [letter(3)])
        assert json.loads(target.read_bytes())["seq"] == 3
    else:
        with pytest.raises(StorageFailed):
            record.save(saved(), [letter(3)])
        assert not target.exists()
    record.close()
