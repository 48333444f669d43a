"""The reader of traces, over traces as strace writes them."""

from __future__ import annotations

import pytest

from tests.rigs.syscalls import judge, parse

OPEN = (
    '7 openat(AT_FDCWD</w>, "/d/wal/1.lmdb", O_RDWR|O_CREAT, 0640) = 8</d/wal/1.lmdb>\n'
    '7 openat(AT_FDCWD</w>, "/d/wal/1.lmdb", O_WRONLY|O_DSYNC) = 9</d/wal/1.lmdb>\n'
)
READ = '5 recvfrom(12<socket:[77]>, "POST /metrics HTTP/1.1", 65536, 0, NULL, NULL) = 100\n'
DATA = '7 pwrite64(8</d/wal/1.lmdb>, "entry"..., 4096, 8192) = 4096\n'
SYNC = "7 fdatasync(8</d/wal/1.lmdb>) = 0\n"
META = '7 pwrite64(9</d/wal/1.lmdb>, "meta"..., 120, 16) = 120\n'
ANSWER = '5 sendto(12<socket:[77]>, "HTTP/1.1 202 \\r\\ncontent-length"..., 90, 0, NULL, 0) = 90\n'


@pytest.mark.parametrize(
    ("order", "early"),
    [
        ((READ, DATA, SYNC, META, ANSWER), 0),
        ((READ, DATA, SYNC, ANSWER, META), 1),
        ((READ, DATA, ANSWER, SYNC, META), 1),
        ((READ, DATA, META, ANSWER), 1),
        ((READ, ANSWER), 1),
        ((DATA, SYNC, META, READ, ANSWER), 1),
        ((READ, DATA, SYNC.replace("= 0", "= -1 EIO (Input/output error)"), META, ANSWER), 1),
        ((READ, DATA, SYNC, META.replace("9<", "8<"), ANSWER), 1),
        ((READ, DATA, SYNC, META.replace("/d/wal", "/d/state"), ANSWER), 1),
    ],
)
def test_only_a_whole_commit_between_the_request_and_its_answer_counts(
    order: tuple[str, ...], early: int
) -> None:
    verdict = judge(parse((OPEN + "".join(order)).splitlines()), wal_dir="/d/wal", answer="HTTP/1.1 202")

    assert verdict.answers == 1
    assert len(verdict.early) == early


def test_a_sync_that_ends_only_after_the_answer_is_found_out() -> None:
    begins = "7 fdatasync(8</d/wal/1.lmdb> <unfinished ...>\n"
    ends = "7 <... fdatasync resumed>) = 0\n"
    late = (OPEN + READ + DATA + begins + ANSWER + ends + META).splitlines()
    good = (OPEN + READ + DATA + begins + ends + META + ANSWER).splitlines()

    assert len(judge(parse(late), wal_dir="/d/wal", answer="HTTP/1.1 202").early) == 1
    assert judge(parse(good), wal_dir="/d/wal", answer="HTTP/1.1 202").early == []
