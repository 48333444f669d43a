"""A minute of every attack at once costs good clients no request, and the node little memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from ops.bench import attack
from ops.bench.attackers import ATTACKS

_RSS_MIB_MAX = 400
_ROWS = (attack.QUIET, attack.ALL, attack.QUIET, attack.ALL, attack.QUIET)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_under_every_attack_at_once_no_good_request_fails_and_memory_is_bounded(tmp_path: Path) -> None:
    with attack.bench(below=tmp_path) as measured:
        rows = [measured.row(name, tuple(ATTACKS) if name == attack.ALL else (), 15.0) for name in _ROWS]
    print(
        f"p50 {attack.ratio(rows, 50):.2f} times, p99 {attack.ratio(rows, 99):.2f} times that of the quiet rows; "
        f"at most {max(row.rss_mib_max for row in rows):.0f} MiB"
    )
    for row in rows:
        assert not row.refused, row.name
        assert row.posts.acked > 0
        assert row.frames.acked > 0
        assert row.rss_mib_max < _RSS_MIB_MAX, row.name
