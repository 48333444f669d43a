"""The kinds of file systems: found from the kernel's own table, and warned about where they are a poor place."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rigs.processes import wait_until
from tests.rigs.service import Service
from wal_ingest.wal import file_system
from wal_ingest.wal.file_system import concern_about, file_system_of

MOUNTS = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:21 / /run rw,nosuid - tmpfs tmpfs rw
24 22 0:30 / /mnt/my\040share rw - nfs4 host:/x rw
25 22 0:31 / /mnt/gfs rw - fuse.glusterfs host:/y rw
26 23 8:2 / /run/disk rw - xfs /dev/sdb rw
a line of another form
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/x", "ext4"),
        ("/run/x", "tmpfs"),
        ("/run/disk/deep/down", "xfs"),
        ("/runner", "ext4"),
        ("/mnt/my share/data", "nfs4"),
        ("/mnt/gfs", "fuse.glusterfs"),
    ],
)
def test_the_longest_mount_point_counts(path: str, kind: str) -> None:
    assert file_system_of(Path(path), MOUNTS) == kind


def test_memory_networks_and_fuse_are_concerns_and_disks_are_not() -> None:
    assert "reboot" in concern_about("tmpfs")
    assert "network" in concern_about("nfs4")
    assert "program" in concern_about("fuse.sshfs")
    assert "volume" in concern_about("overlay")
    assert concern_about("ext4") == concern_about("xfs") == concern_about("") == ""


def test_nothing_is_known_where_the_kernel_does_not_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_system, "_MOUNTS", tmp_path / "none")
    assert file_system_of(tmp_path) == ""


def test_a_node_on_a_file_system_in_memory_warns_at_its_start(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if file_system_of(memory) != "tmpfs":
        pytest.skip("/dev/shm is no tmpfs here")
    data = memory / f"wal-ingest-test-{tmp_path.name}-{id(tmp_path)}"
    try:
        with Service(data, logs=tmp_path) as service:
            log = tmp_path / "serve-1.err"
            wait_until(lambda: "unsuitable file system" in log.read_text(), "the warning is logged")
            assert service.stop() == 0
    finally:
        for path in sorted(data.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        data.rmdir()
