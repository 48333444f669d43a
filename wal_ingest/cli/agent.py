"""`wal-ingest agent`: measure this host, and deliver it to a node."""

from __future__ import annotations

import os
import random
import re
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import wal_ingest
from wal_ingest.cli.options import (
    GiveUpOption,
    SendersTokenFileOption,
    SendersTokenOption,
    give_up_s_of,
    token_of,
)
from wal_ingest.config import load
from wal_ingest.errors import ConfigError
from wal_ingest.settings import LogSettings

if TYPE_CHECKING:
    from wal_ingest.agent.courier import Courier, Way
    from wal_ingest.agent.probes import Probe
    from wal_ingest.agent.spool import Spool

_INTERVAL_S_MIN = 1.0
_INTERVAL_S_MAX = 3_600.0
_STREAM = ("ws://", "wss://")
_HTTP = ("http://", "https://")
_SIZE = re.compile(r"([0-9]{1,15}) ?(KiB|MiB|GiB)?")
_UNITS = {None: 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}

EXAMPLE = "Example: wal-ingest agent --to ws://node:8400 --tag dc=fra1 --interval 10"


def agent(
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="URL",
            help="The node: ws://HOST:PORT (wss://), or http://HOST:PORT (https://).",
            show_default=False,
        ),
    ] = "",
    interval_s: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", help="How often to measure.")
    ] = 10.0,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            metavar="NAME",
            help="The value of the tag host.  [default: this host's name]",
            show_default=False,
        ),
    ] = "",
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", metavar="KEY=VALUE", help="A further tag on every point; may be repeated."),
    ] = None,
    only: Annotated[
        str,
        typer.Option(
            "--only",
            metavar="NAMES",
            help="Measure only these, such as cpu,mem.  [default: cpu,mem,swap,disk,diskio,net,system,agent]",
            show_default=False,
        ),
    ] = "",
    spool_dir: Annotated[
        str,
        typer.Option("--spool-dir", metavar="DIR", help="Where points wait until the node has them."),
    ] = "./agent-spool",
    spool_bytes_max: Annotated[
        str,
        typer.Option(
            "--spool-bytes-max",
            metavar="SIZE",
            help="What the spool may take on disk, in bytes, KiB, MiB or GiB; then new rounds are not kept.",
        ),
    ] = "256MiB",
    token: SendersTokenOption = "",
    token_file: SendersTokenFileOption = None,
    give_up_after: GiveUpOption = None,
    once: Annotated[
        bool, typer.Option("--once", help="Measure once, deliver it, and end; 1 when it was not delivered.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the lines of one round instead.")] = False,
) -> None:
    """Measure this host every few seconds, and deliver it to a node.

    Every round is on this disk before it is sent, and stays until the node says that it is on the node's. So a node
    that is away costs nothing but the spool's space. SIGTERM or Ctrl-C stops it: what is measured is kept.
    --give-up-after ends it with exit code 1 and the points in the spool: the next run delivers them.
    """
    from wal_ingest.signals import ignore_reload_signals

    ignore_reload_signals()
    if not _INTERVAL_S_MIN <= interval_s <= _INTERVAL_S_MAX:
        raise ConfigError(
            f"--interval {interval_s:g}: from {_INTERVAL_S_MIN:g} to {_INTERVAL_S_MAX:g} seconds"
        )
    token, give_up_s = token_of(token, token_file), give_up_s_of(give_up_after)
    host = host or socket.gethostname()
    tags = _tags(host, tag or [])
    size_bytes = _size_bytes(spool_bytes_max)

    import trio

    from wal_ingest.agent.probes import host_probes, psutil_figures
    from wal_ingest.telemetry import configure_logging

    configure_logging(_log_settings(), secrets=[token], in_background=True)
    every = host_probes(psutil_figures())
    names = _names(only, [*every, "agent"])
    probes = {name: probe for name, probe in every.items() if name in names}
    if dry_run:
        sys.stdout.write("".join(trio.run(_round, probes, tags)))
        return
    _check_target(to)
    wanted = _Wanted(
        to=to,
        token=token,
        interval_s=interval_s,
        host=host,
        tags=tags,
        spool_dir=spool_dir,
        spool_bytes_max=size_bytes,
        measures_itself="agent" in names,
        once=once,
        give_up_s=give_up_s,
    )
    from wal_ingest.cli.node import must_not_be_root

    must_not_be_root(Path(spool_dir))
    sys.exit(trio.run(_run, wanted, probes))


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What was asked for on the command line, checked."""

    to: str
    token: str
    interval_s: float
    host: str
    tags: dict[str, str]
    spool_dir: str
    spool_bytes_max: int
    measures_itself: bool
    once: bool
    give_up_s: float | None


def _log_settings() -> LogSettings:
    # Of a node's settings these alone are the agent's business.
    environ = {name: value for name, value in os.environ.items() if name.startswith("WAL_INGEST_LOG__")}
    return load(environ=environ).settings.log


async def _round(probes: dict[str, Probe], tags: dict[str, str]) -> list[str]:
    from wal_ingest.agent.collect import Collector

    return await Collector(probes, tags).collect(time.time_ns())


async def _run(wanted: _Wanted, probes: dict[str, Probe]) -> int:
    from wal_ingest.agent.agent import Agent, Tally, own_probe
    from wal_ingest.agent.collect import Collector
    from wal_ingest.agent.courier import Courier
    from wal_ingest.agent.spool import Spool

    spool = Spool(Path(wanted.spool_dir), bytes_max=wanted.spool_bytes_max, now_ns=time.time_ns)
    try:
        tally = Tally()
        if wanted.measures_itself:
            probes = {**probes, "agent": own_probe(spool, tally)}
        courier = Courier(rng=random.Random())
        way = _way(wanted, spool, courier)
        agent = Agent(
            spool,
            Collector(probes, wanted.tags),
            lambda: courier.run(way),
            host=wanted.host,
            interval_ns=round(wanted.interval_s * 1e9),
            tally=tally,
            now_ns=time.time_ns,
            ready=lambda: _say_ready(wanted),
            give_up_s=wanted.give_up_s,
            reason=lambda: courier.reason,
        )
        return await (agent.run_once() if wanted.once else agent.run())
    finally:
        spool.close()


def _way(wanted: _Wanted, spool: Spool, courier: Courier) -> Way:
    from wal_ingest.client.address import write_address

    if wanted.to.startswith(_STREAM):
        from wal_ingest.agent.over_stream import OverStream
        from wal_ingest.client.stream import open_stream

        return OverStream(
            spool,
            lambda client_id: open_stream(wanted.to, client_id=client_id, token=wanted.token),
            rng=random.Random(),
            connected=courier.connected,
        )
    from wal_ingest.agent.over_http import HttpPost, OverHttp
    from wal_ingest.confirmation import protocol_of

    address = write_address(wanted.to)
    return OverHttp(
        spool,
        HttpPost(address, wanted.token),
        connected=courier.connected,
        protocol=protocol_of(address.target),
    )


def _say_ready(wanted: _Wanted) -> None:
    to = wanted.to.partition("?")[0]  # a token may stand behind it
    how = "once" if wanted.once else f"every {wanted.interval_s:g} s"
    print(
        f"wal-ingest {wal_ingest.__version__} agent measures {wanted.host} {how} for {to}, "
        f"spool in {wanted.spool_dir}",
        flush=True,
    )


# -- what the command line says ----------------------------------------------------------------------------


def _check_target(to: str) -> None:
    from wal_ingest.client.address import stream_address, write_address

    if not to.startswith((*_STREAM, *_HTTP)):
        raise ConfigError(
            f"--to {to!r} is no address of a node" if to else "--to is missing: where the node is",
            hint="give one like ws://127.0.0.1:8400",
        )
    if to.startswith(_STREAM):
        stream_address(to)
    else:
        write_address(to)


def _tags(host: str, given: list[str]) -> dict[str, str]:
    from wal_ingest.agent.probes import OWN_TAGS
    from wal_ingest.points.names import IN_TAG, name_text

    tags = {"host": host}
    for pair in given:
        key, _, value = pair.partition("=")
        if key in OWN_TAGS:
            raise ConfigError(
                f"--tag {pair}: the agent has a tag {key} of its own", hint="choose another name"
            )
        if key in tags:
            raise ConfigError(f"--tag {pair}: {key} is given twice")
        tags[key] = value
    for key, value in tags.items():
        try:
            name_text(key, "tag key", IN_TAG)
            name_text(value, "tag value", IN_TAG)
        except ValueError as exc:
            raise ConfigError(
                f"the tag {key}={value}: {exc}", hint="write --tag KEY=VALUE, and --host NAME"
            ) from None
    return tags


def _names(only: str, known: list[str]) -> list[str]:
    """The measurements that are asked for."""
    if not only:
        return known
    names = [name.strip() for name in only.split(",")]
    for name in names:
        if name not in known:
            raise ConfigError(f"--only: nothing is called {name!r}", hint=f"there are: {', '.join(known)}")
    return names


def _size_bytes(text: str) -> int:
    from wal_ingest.agent.spool import SPOOL_BYTES_MIN

    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"--spool-bytes-max {text!r} is no size", hint="write it as 268435456, or 256MiB")
    size_bytes = int(found[1]) * _UNITS[found[2]]
    if size_bytes < SPOOL_BYTES_MIN:
        raise ConfigError(f"--spool-bytes-max {text}: at least {SPOOL_BYTES_MIN >> 20}MiB")
    return size_bytes
