"""A client that never loses its place: points in, receipts out, whatever the connection does between.

`wal_ingest.client.stream` is the low-level face, for whoever numbers and keeps frames himself.
"""
