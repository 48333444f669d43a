"""From the WAL to the sinks: batches, delivery, confirmation. Knows nothing of HTTP servers."""
