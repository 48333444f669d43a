"""Reads a trace of system calls (strace) and says of every answer whether its points were synced before. Pure.

What one acknowledged request must look like, in the order of the trace, whichever threads do it:

    the request's bytes are read from its connection
      → data are written to a segment file
        → a sync of that file begins and ends             (fdatasync: the entries)
          → a write through an O_DSYNC descriptor ends    (LMDB's meta page, which makes them count)
            → the answer is written to the connection

A group commit may serve many requests at once, so what is asked is that *one whole commit* lies between the last
byte read of a request and its answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

# 1234 fdatasync(9</tmp/data/wal/1.lmdb>) = 0
_CALL = re.compile(r"^(?P<pid>\d+) +(?P<name>\w+)\((?P<rest>.*)$")
_RESUMED = re.compile(r"^(?P<pid>\d+) +<\.\.\. (?P<name>\w+) resumed>(?P<rest>.*)$")
_UNFINISHED = " <unfinished ...>"
_FD = re.compile(r"^(?P<fd>\d+)<(?P<path>[^>]*)>")
_OPENED = re.compile(r"= (?P<fd>\d+)<(?P<path>[^>]*)>")

TRACED = (
    "openat,close,read,recvfrom,recvmsg,readv,write,writev,sendto,sendmsg,pwrite64,pwritev,fsync,fdatasync"
)
_READS = {"read", "recvfrom", "recvmsg", "readv"}
_SENDS = {"write", "writev", "sendto", "sendmsg"}
_WRITES = {"write", "writev", "pwrite64", "pwritev"}
_SYNCS = {"fsync", "fdatasync"}


@dataclass(frozen=True, slots=True)
class Call:
    """One system call; `began` and `ended` are the numbers of the trace's lines at which it did."""

    name: str
    fd: int
    path: str
    text: str
    began: int
    ended: int
    failed: bool
    opened_fd: int = -1
    opened_path: str = ""


@dataclass(slots=True)
class Verdict:
    """`answers` counts the acknowledgements seen; `early` describes those that no commit came before."""

    answers: int = 0
    early: list[str] = field(default_factory=list)
    commits: int = 0


def parse(lines: Iterable[str]) -> Iterator[Call]:
    """The calls of `strace -f -y -o FILE`, in the order in which they ended."""
    open_calls: dict[str, tuple[str, str, int]] = {}
    for number, line in enumerate(lines):
        line = line.rstrip("\n")
        if resumed := _RESUMED.match(line):
            began = open_calls.pop(resumed["pid"], None)
            if began is not None:
                yield _call(began[0], began[1] + resumed["rest"], began[2], number)
        elif call := _CALL.match(line):
            if line.endswith(_UNFINISHED):
                open_calls[call["pid"]] = (call["name"], call["rest"].removesuffix(_UNFINISHED), number)
            else:
                yield _call(call["name"], call["rest"], number, number)


def _call(name: str, text: str, began: int, ended: int) -> Call:
    where = _FD.match(text)
    opened = _OPENED.search(text) if name == "openat" else None
    return Call(
        name,
        int(where["fd"]) if where else -1,
        where["path"] if where else "",
        text,
        began,
        ended,
        failed=" = -1 " in text or " = ?" in text,
        opened_fd=int(opened["fd"]) if opened else -1,
        opened_path=opened["path"] if opened else "",
    )


def judge(calls: Iterable[Call], *, wal_dir: str, answer: str) -> Verdict:
    """Whether every answer that holds `answer` came after a whole commit in `wal_dir` that began after its request.

    `answer` is what an acknowledgement begins with, such as "HTTP/1.1 202".
    """
    ordered = [call for call in calls if not call.failed]
    commits = list(_commits(ordered, wal_dir))
    verdict = Verdict(commits=len(commits))
    last_read: dict[str, int] = {}
    for call in sorted(ordered, key=lambda call: call.began):
        if not call.path.startswith("socket:") and not call.path.startswith("TCP"):
            continue
        if call.name in _READS and not call.text.endswith("= 0"):
            last_read[call.path] = call.ended
        elif call.name in _SENDS and answer in call.text:
            verdict.answers += 1
            since = last_read.get(call.path, 0)
            if not any(since < began and ended < call.began for began, ended in commits):
                verdict.early.append(f"line {call.began + 1}: {call.text[:120]}")
    return verdict


def _commits(calls: list[Call], wal_dir: str) -> Iterator[tuple[int, int]]:
    """Of each commit in the WAL: the first line of its data write, and the line at which its meta write ended."""
    synchronous: set[tuple[int, str]] = set()
    wrote: dict[str, int] = {}
    synced: dict[str, int] = {}
    for call in calls:
        if call.name == "openat" and "O_DSYNC" in call.text:
            synchronous.add((call.opened_fd, call.opened_path))
        elif call.name == "close":
            synchronous.discard((call.fd, call.path))
        elif not call.path.startswith(wal_dir):
            continue
        elif call.name in _SYNCS and call.path in wrote and call.began > wrote[call.path]:
            synced[call.path] = call.ended
        elif call.name in _WRITES and (call.fd, call.path) in synchronous:
            if call.path in synced and synced[call.path] < call.began:
                yield wrote[call.path], call.ended
            wrote.pop(call.path, None)
            synced.pop(call.path, None)
        elif call.name in _WRITES:
            wrote.setdefault(call.path, call.began)
