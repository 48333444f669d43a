"""wal-ingest: a metrics ingest node that makes every point durable before it says yes.

The folders tell what happens to a point, in order: `http` takes it, `points` brings it to the one form
that is ever stored, `wal` makes it durable, `flusher` delivers it to the sinks and has it truncated.
Arrows run in that direction only; `service` is the one module that knows both halves.
"""

__version__ = "0.1.0"
