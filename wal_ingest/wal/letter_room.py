"""How much room dead letters may take, and whether there is enough of it for some more.

Two limits: bytes of their own, and a floor of free disk. The floor is half of the log's (`wal.free_disk_bytes_min`): a
log that has filled the disk to its floor must still drain, and that may take room for letters first. What is parked
lets segments go, so the room comes back. Space that the state file holds already (see `space`) is not counted again:
what fits in there may be parked on a disk that is full.
"""

from __future__ import annotations

from dataclasses import dataclass

from wal_ingest.errors import DiskFull, NoRoomForLetters

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class LetterLimits:
    """`bytes_max` is for all dead letters together; `free_bytes_min` must stay free on the disk."""

    bytes_max: int = _GIB
    free_bytes_min: int = 0

    def check_bytes(self, sink: str, *, used_bytes: int, more_bytes: int) -> None:
        """Raises `NoRoomForLetters` where `more_bytes` of letters are more than they may have together."""
        if used_bytes + more_bytes > self.bytes_max:
            raise NoRoomForLetters(
                sink,
                f"{used_bytes} bytes are used, {more_bytes} more are needed, the limit is {self.bytes_max} "
                "(flusher.dead_letters_bytes_max)",
            )

    def check_disk(self, *, more_bytes: int, free_bytes: int) -> None:
        """Raises `DiskFull` where `more_bytes` would bring the disk below the floor."""
        if free_bytes - more_bytes < self.free_bytes_min:
            raise DiskFull(
                f"the disk has {free_bytes} bytes free, {more_bytes} are needed, and {self.free_bytes_min} must stay "
                "free (half of wal.free_disk_bytes_min)"
            )
