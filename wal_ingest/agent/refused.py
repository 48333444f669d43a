"""What the node refused for good: a gzip file for each entry, with the reason as a comment above its lines.

`zcat` shows them, and `wal-ingest wal import` takes them once what was wrong is mended. They stay until a person
removes them.
"""

from __future__ import annotations

import os
from pathlib import Path

from wal_ingest.errors import StorageFailed
from wal_ingest.wal.directory import make_directory, open_unlinked, reason_of, rename, sync_directory
from wal_ingest.wal.entry import Entry
from wal_ingest.wal.gzip_codec import compress

_SUFFIX = ".lp.gz"
_REASON_CHARS_MAX = 400


class Refused:
    """The folder of one spool. `disk_bytes` is what its files take, `files` how many there are."""

    def __init__(self, directory: Path) -> None:
        """Looks at what is there; the folder is made when there is something to keep."""
        self._directory = directory
        sizes = [path.stat().st_size for path in directory.glob(f"*{_SUFFIX}")]
        self.disk_bytes = sum(sizes)
        self.files = len(sizes)

    def __contains__(self, entry: Entry) -> bool:
        """Whether an entry was refused, in an earlier life perhaps."""
        return self._path(entry).exists()

    def keep(self, entry: Entry, reason: str) -> Path:
        """Writes the entry's lines and the reason, durable when it returns. Blocks. Raises `StorageFailed`."""
        path = self._path(entry)
        comment = " ".join(reason.split())[:_REASON_CHARS_MAX]
        data = compress(f"# refused by the node: {comment}\n".encode()) + entry.gzip_member()
        make_directory(self._directory)
        new = path.with_suffix(".new")
        try:
            with open(new, "wb", opener=open_unlinked) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as exc:
            raise StorageFailed(new, reason_of(exc), number=exc.errno or 0) from exc
        rename(new, path)
        sync_directory(self._directory)
        self.disk_bytes += len(data)
        self.files += 1
        return path

    def _path(self, entry: Entry) -> Path:
        # The time as well: seqs begin again at 1 with a spool whose files were removed, all but these.
        return self._directory / f"{entry.seq:020d}-{entry.accepted_ns}{_SUFFIX}"
