"""Lines that both InfluxDB 1.6 and 2.8 take and that a strict parser would refuse, among 999 as Telegraf sends them."""

from __future__ import annotations

from dataclasses import dataclass

START_NS = 1_763_800_000_000_000_000
BATCH = 1_000
PLACE = 500


@dataclass(frozen=True)
class Odd:
    """A line as it is sent, and as it is stored; both without a time, and whole: no line feed at the end."""

    sent: bytes
    stored: bytes


def same(line: bytes) -> Odd:
    return Odd(line, line)


ODD = {
    "an even run of backslashes": same(rb"win,path=C:\\ x v=1"),
    "a distinguished name": same(rb"ldap,dn=CN\=Smith\\\,\ John,o=a\\\\\,b v=1"),
    "a line feed in a string": same(b'log,app=x msg="one\ntwo\n",level=3i'),
    "line protocol in a string": same(b'log,app=y msg="\r\n# cpu\n\ncpu,host=fake v=1 1\n\\"",level=4i'),
    "a byte of Latin-1": Odd(
        b'snmp,unit=\xb0C alias="B\xfcro",v=2', 'snmp,unit=°C alias="Büro",v=2'.encode()
    ),
    "a tab in a tag": same(b"tab,path=a\tb v=1"),
    "an escape in a tag": same(b"colour,level=\x1b[31mred v=1"),
    "a NUL in a tag": same(b"nul,host=a\x00b v=1"),
    "blanks before a measurement": Odd(b"\t\x00cpu,host=blank v=1", b"cpu,host=blank v=1"),
    "a string of 70 KiB": same(b'long,kind=a text="' + b"x" * 70_000 + b'",v=1'),
    "a string of 1 MB": same(b'long,kind=b text="' + b"y, =" * 250_000 + b'",v=1'),
}

_KINDS = (
    b"cpu,cpu=cpu%d,host=web usage_user=1.5,usage_idle=97i",
    b"disk,device=sda%d,fstype=ext4,host=web,mode=rw,path=/var free=1i,ok=true",
    b'system,host=web%d uptime_format=" 3 days, 4:05"',
    b'app,host=web%d said=", user=x v=1 1",level=3i',
    b"net,host=we\\ b%d bytes=1i",
)


def timed(line: bytes, place: int) -> bytes:
    return b"%b %d\n" % (line, START_NS + place * 1_000_000)


def ordinary(lines: int = BATCH) -> list[bytes]:
    """Lines as Telegraf sends them, a millisecond apart."""
    return [timed(_KINDS[n % len(_KINDS)] % n, n) for n in range(lines)]


def batch_with(line: bytes) -> bytes:
    """A batch of 1,000 lines, this one in the middle."""
    lines = ordinary()
    lines[PLACE] = timed(line, PLACE)
    return b"".join(lines)
