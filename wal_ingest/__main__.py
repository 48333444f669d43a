"""`python -m wal_ingest`: the same as the `wal-ingest` command."""

from wal_ingest.cli import main

if __name__ == "__main__":
    main()
