"""A round: what is measured, how it is written, and what one broken probe costs."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence

import pytest
import structlog.testing
import trio

from tests.agent.rig import NOW_NS, FakeHost
from wal_ingest.agent.collect import Collector
from wal_ingest.agent.probes import Probe, host_probes, psutil_figures
from wal_ingest.agent.readings import Reading, line_of
from wal_ingest.points.line_protocol import accept_line_protocol
from wal_ingest.points.lines import Precision


async def on_the_spot(work: Callable[[], None]) -> None:
    await trio.lowlevel.checkpoint()
    work()


def collector(probes: dict[str, Probe]) -> Collector:
    return Collector(probes, {"host": "web-17", "dc": "a"}, threads=on_the_spot)


async def measured(host: FakeHost) -> list[str]:
    return await collector(host_probes(host)).collect(7)


async def test_a_round_has_every_measurement_of_the_host() -> None:
    # No n_cpus: this host could not tell.
    assert await measured(FakeHost()) == [
        "cpu,cpu=cpu-total,dc=a,host=web-17 time_user=3.0,time_system=2.0,time_idle=1.0 7\n",
        "cpu,cpu=cpu0,dc=a,host=web-17 time_user=3.0,time_system=2.0,time_idle=1.0 7\n",
        "mem,dc=a,host=web-17 total=100i,available=60i,used=30i,free=20i,used_percent=40.0 7\n",
        "swap,dc=a,host=web-17 total=10i,used=5i,free=5i,in=1i,out=2i,used_percent=50.0 7\n",
        "disk,dc=a,device=vg-root,fstype=ext4,host=web-17,path=/ "
        "total=100i,used=25i,free=75i,used_percent=25.0,inodes_total=10i,inodes_free=4i 7\n",
        "disk,dc=a,device=sdb1,fstype=xfs,host=web-17,path=/my\\ data "
        "total=100i,used=25i,free=75i,used_percent=25.0 7\n",
        *(
            f"diskio,dc=a,host=web-17,name={name} "
            "reads=1i,writes=2i,read_bytes=3i,write_bytes=4i,read_time=5i,write_time=6i 7\n"
            for name in ("sda", "sda1", "nvme0n1")
        ),
        *(
            f"net,dc=a,host=web-17,interface={name} bytes_sent=1i,bytes_recv=2i,packets_sent=3i,packets_recv=4i,"
            "err_in=5i,err_out=6i,drop_in=7i,drop_out=8i 7\n"
            for name in ("eth0", "lo1")
        ),
        "system,dc=a,host=web-17 load1=0.5,load5=0.25,load15=0.125,n_processes=73i,uptime=6064i 7\n",
    ]


async def test_this_host_is_measured_in_lines_that_the_node_stores_as_they_are() -> None:
    lines = await Collector(host_probes(psutil_figures()), {"host": "web-17"}).collect(NOW_NS)
    measurements = {line.partition(",")[0] for line in lines}
    assert {"cpu", "mem", "swap", "system"} <= measurements
    body = "".join(lines).encode()
    taken = accept_line_protocol(body, precision=Precision.NS, now_ns=1, line_bytes_max=65_536)
    assert (taken.data, taken.points) == (body, len(lines))


async def test_a_file_system_that_may_not_be_looked_at_hides_no_other() -> None:
    host = FakeHost()
    host.broken_mounts = {"/my data"}
    assert [line for line in await measured(host) if "sdb1" in line] == []
    assert [line for line in await measured(host) if "vg-root" in line]


async def test_a_probe_that_fails_is_told_of_once_and_the_others_go_on() -> None:
    host = FakeHost()
    host.broken_mounts = {"/", "/my data"}
    asked = collector(host_probes(host))
    with structlog.testing.capture_logs() as told:
        for _ in range(3):
            lines = await asked.collect(7)
        host.broken_mounts = set()
        again = await asked.collect(7)
    assert {line.partition(",")[0] for line in lines} == {"cpu", "mem", "swap", "diskio", "net", "system"}
    assert any(line.startswith("disk,") for line in again)
    assert [(entry["event"], entry["measurement"]) for entry in told] == [
        ("cannot be measured; the others go on", "disk"),
        ("measured again", "disk"),
    ]
    assert "Permission denied" in told[0]["reason"]


async def test_a_probe_that_hangs_is_left_behind_and_not_asked_until_it_returns() -> None:
    let_go, asked, returned = threading.Event(), [], threading.Event()

    def hangs() -> Sequence[Reading]:
        asked.append(1)
        let_go.wait()
        returned.set()
        return [Reading("slow", {"a": 1})]

    def works() -> Sequence[Reading]:
        return [Reading("quick", {"a": 1})]

    probes: dict[str, Probe] = {"slow": hangs, "quick": works}
    collector = Collector(probes, {}, probe_s_max=0.05)
    try:
        with structlog.testing.capture_logs() as told:
            assert await collector.collect(7) == ["quick a=1i 7\n"]
            assert await collector.collect(8) == ["quick a=1i 8\n"]
        assert len(asked) == 1
        assert [entry["reason"] for entry in told] == ["no answer within 0.05 s"]
    finally:
        let_go.set()
    await trio.to_thread.run_sync(returned.wait)
    for _ in range(1_000):  # the thread has a line or two left to go
        if len(await collector.collect(9)) == 2:
            break
    assert await collector.collect(9) == ["slow a=1i 9\n", "quick a=1i 9\n"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2**63, None])
def test_a_value_that_no_line_can_carry_is_left_out(value: float | None) -> None:
    assert line_of(Reading("m", {"a": value, "b": 2}), {}, 7) == "m b=2i 7\n"
    assert line_of(Reading("m", {"a": value}), {}, 7) == ""


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("/a b,c=d", r"/a\ b\,c\=d"),
        ("/a\nb", "/a_b"),
        ("/ends in \\", r"/ends\ in\ _"),
        ("/two\\\\ x", r"/two__\ x"),
        ("/fine\\here", r"/fine\here"),
        ("/\udcff", "/?"),
    ],
)
def test_an_odd_path_is_carried_as_near_as_can_be(path: str, written: str) -> None:
    line = line_of(Reading("disk", {"a": True}, {"path": path}), {"empty": ""}, NOW_NS)
    assert line == f"disk,path={written} a=true {NOW_NS}\n"
    accepted = accept_line_protocol(line.encode(), precision=Precision.NS, now_ns=1, line_bytes_max=1000)
    assert accepted.data == line.encode()
