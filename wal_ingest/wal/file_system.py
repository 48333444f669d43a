"""On which kind of file system a directory lies, and why some kinds are a poor place for a write-ahead log."""

from __future__ import annotations

from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")

_IN_MEMORY = "it is kept in memory: after a reboot or a power cut nothing of it is left"
_NETWORK = "locks, memory maps and syncs over a network are not as reliable as LMDB needs them"
_FUSE = "whether a sync reaches a disk depends on the program that serves it"

_CONCERNS = {
    "tmpfs": _IN_MEMORY,
    "ramfs": _IN_MEMORY,
    "overlay": "it belongs to a container, and is removed with it: mount a volume",
    "nfs": _NETWORK,
    "nfs4": _NETWORK,
    "cifs": _NETWORK,
    "smb3": _NETWORK,
    "9p": _NETWORK,
    "ceph": _NETWORK,
    "glusterfs": _NETWORK,
    "fuse": _FUSE,
    "fuseblk": _FUSE,
}


def file_system_of(path: Path, mounts: str | None = None) -> str:
    """The type of the file system that holds `path`, such as `ext4`; empty where the kernel does not say.

    `mounts` is the text of /proc/self/mountinfo (see proc(5)); of several mounts the last one over the longest
    prefix counts.
    """
    if mounts is None:
        try:
            mounts = _MOUNTS.read_text(errors="replace")
        except OSError:
            return ""
    target = path.resolve()
    found, depth = "", -1
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 5 or not after:
            continue
        # Spaces and the like are written in octal.
        point = Path(fields[4].encode("latin-1", "replace").decode("unicode_escape"))
        if len(point.parts) >= depth and target.is_relative_to(point):
            found, depth = after.split(" ")[0], len(point.parts)
    return found


def concern_about(kind: str) -> str:
    """Why a file system of that type is a poor place for the log; empty when it is not."""
    return _CONCERNS.get(kind) or (_FUSE if kind.startswith("fuse.") else "")
