"""The spool: durable, bounded, and nothing in it is dropped."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.agent.rig import fill, open_spool, rounds, text_of
from wal_ingest.agent.spool import SINK, SPOOL_BYTES_MIN, Spool
from wal_ingest.errors import DataDirLocked, StorageFailed, WalFull
from wal_ingest.points.line_protocol import accept_line_protocol
from wal_ingest.points.lines import Precision
from wal_ingest.wal.state import read_state
from wal_ingest.wal.store import Store


async def test_rounds_are_entries_in_order_and_there_after_a_restart(tmp_path: Path) -> None:
    async with open_spool(tmp_path) as spool:
        await fill(spool, 3)
        stream_id = spool.stream_id
    async with open_spool(tmp_path) as spool:
        entries = await spool.read(0)
        assert [entry.seq for entry in entries] == [1, 2, 3]
        lines = [line for entry in entries for line in entry.lines().splitlines()]
        assert lines == text_of(rounds(3))
        assert (spool.stream_id, spool.waiting_points) == (stream_id, 6)


async def test_a_spool_that_could_not_be_opened_is_not_left_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_arguments: object) -> None:
        raise StorageFailed(tmp_path / "state.lmdb", "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(Store, "commit_cursor", failing)
        # Kept: its traceback holds on to the store, which must have been closed all the same.
        with pytest.raises(StorageFailed) as failed:
            async with open_spool(tmp_path):
                pass
    async with open_spool(tmp_path) as spool:
        assert spool.last_seq == 0
    assert failed.value.reason == "Input/output error"


async def test_a_round_of_more_points_than_an_entry_holds_is_several(tmp_path: Path) -> None:
    async with open_spool(tmp_path) as spool:
        assert await spool.append([f"m a={n} 1\n" for n in range(2_500)]) == 3
        assert [entry.points for entry in await spool.read(0)] == [1_000, 1_000, 500]


async def test_what_is_settled_is_gone_in_whole_segments_and_not_read_again(tmp_path: Path) -> None:
    async with open_spool(tmp_path) as spool:
        await fill(spool, 3)
        await spool.settle((await spool.read(0))[:2])
        assert (spool.settled_seq, spool.waiting_points) == (2, 2)
    async with open_spool(tmp_path) as spool:
        assert [entry.seq for entry in await spool.read(spool.settled_seq)] == [3]
        await spool.settle(await spool.read(2))
        # What an earlier life wrote to is sealed, and all of it is settled.
        assert len(list((tmp_path / "wal").glob("*.lmdb"))) == 1
        await fill(spool, 1, first=4)
        assert [entry.seq for entry in await spool.read(3)] == [4]


async def test_a_full_spool_takes_no_round_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    rng = Random(7)

    def big() -> list[str]:
        # Numbers, so that it does not compress away.
        return [f"m,n={n} {'f' * 200}={rng.getrandbits(50)},g={rng.random()} 1\n" for n in range(1_000)]

    async with open_spool(tmp_path) as spool:
        with contextlib.suppress(WalFull):
            for _ in range(1_000):
                await spool.append(big())
        taken = spool.last_seq
        assert 3 < taken < 1_000
        assert SPOOL_BYTES_MIN <= spool.disk_bytes < SPOOL_BYTES_MIN + (2 << 20)
        assert (await spool.read(0))[0].seq == 1
        while entries := await spool.read(spool.settled_seq):
            await spool.settle(entries)
        assert await spool.append(["m a=1 1\n"]) == taken + 1


async def test_what_the_node_refused_counts_against_the_limit(tmp_path: Path) -> None:
    async with open_spool(tmp_path) as spool:
        await fill(spool, 1)
        spool.refused.disk_bytes = SPOOL_BYTES_MIN
        with pytest.raises(WalFull, match=r"4194304 of them refused by the node.*--spool-bytes-max"):
            await fill(spool, 1)


async def test_a_full_disk_is_measured_while_the_spool_is_small(tmp_path: Path) -> None:
    """The round that says how full the disk is must not be kept back by that: the node takes it at once."""
    async with open_spool(tmp_path, free_bytes=lambda _path: 0) as spool:
        await fill(spool, 2)
        assert spool.last_seq == 2


async def test_refused_rounds_are_kept_with_the_reason_as_a_file_that_can_be_imported(tmp_path: Path) -> None:
    async with open_spool(tmp_path) as spool:
        await fill(spool, 2)
        entries = await spool.read(0)
        assert entries[0] not in spool.refused
        path = spool.refused.keep(entries[0], "400: line 1:\nno such thing")
        await spool.settle(entries, refused={1})
        assert entries[0] in spool.refused
    text = gzip.decompress(path.read_bytes())
    assert text.startswith(b"# refused by the node: 400: line 1: no such thing\n")
    lines = accept_line_protocol(text, precision=Precision.NS, now_ns=1, line_bytes_max=1000)
    assert lines.data == entries[0].lines()
    cursor = read_state(tmp_path / "state.lmdb").cursors[SINK]
    assert (cursor.confirmed, cursor.parked, cursor.unaccounted) == (2, 2, 0)
    async with open_spool(tmp_path) as spool:
        assert (spool.refused.files, spool.refused.disk_bytes) == (1, path.stat().st_size)


async def test_a_new_stream_id_is_durable_and_goes_with_the_cursor(tmp_path: Path) -> None:
    async with open_spool(tmp_path) as spool:
        await fill(spool, 2)
        plain = spool.stream_id
        await spool.begin_stream("00c0ffee")
        await spool.settle((await spool.read(0))[:1])
    async with open_spool(tmp_path) as spool:
        assert spool.stream_id == f"{plain}.00c0ffee"
        assert spool.settled_seq == 1


async def test_a_second_agent_on_the_same_spool_is_told_to_take_its_own(tmp_path: Path) -> None:
    async with open_spool(tmp_path):
        with pytest.raises(DataDirLocked) as caught:
            Spool(tmp_path, bytes_max=SPOOL_BYTES_MIN, now_ns=lambda: 1)
    assert "--spool-dir" in caught.value.hint


def cut_the_state(directory: Path) -> None:
    (directory / "state.lmdb").unlink()


def flip_an_entry(directory: Path) -> None:
    [path] = sorted((directory / "wal").glob("*.lmdb"))[:1]
    # Everywhere: pages that are no longer used have it as well.
    data = path.read_bytes()
    assert b"m,n=1 a=1" in data
    path.write_bytes(data.replace(b"m,n=1 a=1", b"m,n=1 a=0"))


@pytest.mark.parametrize(
    ("damage", "left"), [(cut_the_state, [1, 2, 3]), (flip_an_entry, [2, 3])], ids=["no state", "flipped bit"]
)
async def test_damage_is_told_and_everything_else_is_still_delivered(
    tmp_path: Path, damage: Callable[[Path], None], left: list[int]
) -> None:
    async with open_spool(tmp_path) as spool:
        await fill(spool, 2)
        stream_id = spool.stream_id
    async with open_spool(tmp_path) as spool:
        await fill(spool, 1, first=3)
    damage(tmp_path)
    async with open_spool(tmp_path) as spool:
        entries = await spool.wait_read(0)
        if len(entries) < len(left):
            entries += await spool.wait_read(entries[-1].seq)
        assert [entry.seq for entry in entries] == left
        assert spool.stream_id == stream_id
        assert spool.trouble
        await spool.settle(entries)
        assert (spool.settled_seq, spool.waiting_points) == (3, 0)
