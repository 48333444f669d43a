"""The power goes while streams send: every acknowledged frame is on the disk, and none is stored twice afterwards.

The clients keep their ledgers on another disk and live on, as a fleet does when its node loses power.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from random import Random

import pytest

from tests.clients.stream_ledger import Ledger
from tests.proofs.test_power_cut import IMAGE_BYTES, LOAD_S_MAX, SMALL
from tests.proofs.test_stream_kill import Sender, _check_answers, _sent_by
from tests.rigs.account import Account, account_archive, archive_lines, points_of
from tests.rigs.loop_image import mounted_image
from tests.rigs.no_sync import no_sync_environment
from tests.rigs.relay import Relay
from tests.rigs.seeds import round_seed
from tests.rigs.service import Service

NAMES = ("cuta", "cutb")


def _cut_the_power(root: Path, env: Mapping[str, str]) -> tuple[Account, list[Sender], int]:
    """One round, and what the archive has of the acknowledged frames when the clients were told of all they sent."""
    seed = round_seed()
    dice = Random(seed)
    lives_s = dice.uniform(0.05, LOAD_S_MAX)
    print(f"seed {seed}, {lives_s * 1000:.0f} ms of load")
    root.mkdir()
    with mounted_image(root, bytes_max=IMAGE_BYTES) as disk, Relay(seed=seed) as relay:
        service = Service(disk.path / "data", logs=root, settings=SMALL, env=env)
        senders = [Sender("stream_frames", name, relay, root) for name in NAMES]
        with service:
            relay.upstream_port = service.port
            try:
                for sender in senders:
                    sender.start()
                for sender in senders:
                    sender.wait_for_acks()
                threading.Event().wait(lives_s)
                service.process.pause()
                with disk.as_after_a_power_cut() as where:
                    service.kill()
                    logs = root / "logs-after-the-cut"
                    logs.mkdir()
                    with Service(where / "data", logs=logs, settings=SMALL) as after:
                        relay.upstream_port = after.port
                        for sender in senders:
                            sender.finish()
                        accepted = after.wait_drained("archive")["points_accepted"]
                        assert after.stop() == 0
                    lines = list(archive_lines(where / "data"))
            finally:
                for sender in senders:
                    sender.process.end()
    sent = []
    for sender in senders:
        with Ledger(sender.path) as ledger:
            sent += _sent_by(sender, ledger)
            print(f"  {sender.name}: {len(ledger.acked)} frames acknowledged, {ledger.again} sent again")
    account = account_archive(lines, sent)
    return account, senders, accepted - points_of(sent)


@pytest.mark.timeout(300)
@pytest.mark.needs("loop")
def test_a_power_cut_under_streams_loses_no_acknowledged_frame_and_stores_none_twice(tmp_path: Path) -> None:
    for number in range(2):
        account, senders, surplus_points = _cut_the_power(tmp_path / str(number), env={})
        account.check()
        assert surplus_points == 0
        for sender in senders:
            with Ledger(sender.path) as ledger:
                _check_answers(ledger)


@pytest.mark.timeout(300)
@pytest.mark.needs("loop", "cc")
def test_without_syncs_the_same_power_cut_loses_acknowledged_frames(tmp_path: Path) -> None:
    env = no_sync_environment(tmp_path)
    account, _, _ = _cut_the_power(tmp_path / "round", env=env)
    assert account.lost > 0, "a harness that shows no loss proves nothing"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.needs("loop")
def test_30_power_cuts_under_streams_lose_no_acknowledged_frame(tmp_path: Path) -> None:
    for number in range(30):
        account, _, surplus_points = _cut_the_power(tmp_path / str(number), env={})
        account.check()
        assert surplus_points == 0
