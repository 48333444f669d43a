"""The write-ahead log: entries made durable, read back, and dropped a segment at a time. See FORMAT.md."""
