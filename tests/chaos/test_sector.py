"""The bad sector that chaos makes: a process cannot read one page, and all around it as before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ops.chaos.sector import PAGE_BYTES, Sector

READ = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
for offset, length in ((0, 8192), (4096, 8192), (8192, 10), (12287, 1), (12288, 10), (0, 16384)):
    try:
        print(len(os.pread(fd, length, offset)))
    except OSError as exc:
        print(exc.strerror)
"""


@pytest.mark.needs("cc")
def test_one_page_cannot_be_read_and_what_is_before_it_is_given(tmp_path: Path) -> None:
    file, sector = tmp_path / "segment", Sector(tmp_path)
    file.write_bytes(b"x" * 4 * PAGE_BYTES)

    def said(path: Path) -> list[str]:
        command = [sys.executable, "-c", READ, str(path)]
        env = {**os.environ, **sector.environment}
        return subprocess.run(
            command, env=env, capture_output=True, text=True, check=True
        ).stdout.splitlines()

    whole = ["8192", "8192", "10", "1", "10", "16384"]
    assert said(file) == whole
    sector.strike(file, 2)
    renamed = file.rename(tmp_path / "damaged")
    failed = "Input/output error"
    assert said(renamed) == ["8192", "4096", failed, failed, "10", "8192"]
    file.write_bytes(renamed.read_bytes())
    assert said(file) == whole  # another file
    sector.heal()
    assert said(renamed) == whole
    assert sector.struck == 1
