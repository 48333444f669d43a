"""Replay: what was accepted in a range of time, or of seqs, is written to a database once more.

Invariants:

* Nothing of the node is changed: no cursor moves, the state is not read, no lock of the data directory is taken. The
  sources are read from outside, beside a running server or without one.
* What a replay remembers of itself never runs ahead: the place to go on from is passed only when every point before it
  is confirmed, or is in the file of rejected points, synced.
* Every entry of the range that cannot be read is counted and named as lost, never passed over.

The flow is the delivery's (`wal_ingest.flusher.delivery`): read → batch → write, several at once → confirm in order →
remember. What differs is where it reads (`wal`, `archive`; `plan` chooses), and where it remembers (`record`). What a
kill leaves behind is the last place: what was written after it is written again, which changes nothing, as every line
carries its own time; a point rejected after it may be in the file of rejected points twice.
"""
