"""Dead letters that go into blocks and files after a few: what takes thousands of them otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

from wal_ingest.wal import letter_blocks, letter_files, letter_store


@contextmanager
def small_letters(
    *, loose: int = 3, block: int = 4, run: int = 12, file_bytes: int = 1_000
) -> Iterator[None]:
    """At most so many records, letters of a block and of a run, and bytes of a file."""
    with ExitStack() as stack:
        for module, name, value in (
            (letter_store, "LOOSE_LETTERS", loose),
            (letter_store, "RUN_LETTERS", run),
            (letter_store, "PIECE_LETTERS", 2),
            (letter_blocks, "BLOCK_LETTERS", block),
            (letter_blocks, "RUN_LETTERS", run),
            (letter_files, "FILE_BYTES", file_bytes),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        yield
