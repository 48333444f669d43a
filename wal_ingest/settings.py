"""Every setting, in one typed table: its unit (the end of its name), its default, and why it is there.

`wal_ingest.config` fills the table from a file, the environment and flags. Adding a field here is all it
takes to add a setting: the sample configuration, `wal-ingest config` and the checks are made from it, and
the docs test asks for its line in the README.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct, field

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


def _why(description: str, **bounds: Any) -> Meta:
    return Meta(description=description, **bounds)


class ServerSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[server]: the listener and the limits at the front door."""

    bind: Annotated[
        str,
        _why(
            "Address and port to listen on, HOST:PORT. Port 0 takes a free one, and the ready line names it."
        ),
    ] = "127.0.0.1:8400"
    data_dir: Annotated[
        str, _why("Directory of the WAL, its state and the archive. One server at a time.", min_length=1)
    ] = "./data"
    body_bytes_max: Annotated[
        int,
        _why(
            "Largest body of a request, counted after decompression; a larger one is answered 413.",
            ge=KIB,
            le=GIB,
        ),
    ] = 32 * MIB
    header_bytes_max: Annotated[
        int, _why("Largest request line and headers together; larger ones are answered 431.", ge=KIB, le=MIB)
    ] = 16 * KIB
    line_bytes_max: Annotated[
        int,
        _why(
            "Longest single line of line protocol; a body with a longer one is answered 400.",
            ge=KIB,
            le=16 * MIB,
        ),
    ] = 2 * MIB
    json_depth_max: Annotated[
        int, _why("Deepest nesting of a JSON body, in levels; a deeper one is answered 400.", ge=3, le=100)
    ] = 16
    body_s_max: Annotated[
        float, _why("Seconds a request's body may take to arrive; then it is answered 408.", gt=0)
    ] = 30.0
    body_bytes_per_s_min: Annotated[
        int,
        _why(
            "Least rate of a body or of a stream's frame, in bytes a second over 10 seconds, once 64 KiB of it have "
            "arrived; a slower one is answered 408, a stream closed. 0: no least rate.",
            ge=0,
        ),
    ] = 1024
    partial_writes: Annotated[
        str,
        _why(
            "Where the good lines of a request are stored although others are bad, and the bad ones reported: "
            '"dialect" on /write and /api/v3/write_lp, as InfluxDB 1 and 3 do; "always" on /api/v2/write too; "never". '
            "A request decides for itself with accept_partial=true or false.",
            pattern="^(dialect|always|never)$",
        ),
    ] = "dialect"
    time_window_past_s: Annotated[
        float,
        _why(
            "Age in seconds beyond which a point is refused; 0 takes any. Catches times in a wrong unit.",
            ge=0,
        ),
    ] = 0.0
    time_window_future_s: Annotated[
        float, _why("Seconds ahead of the clock beyond which a point is refused; 0 takes any.", ge=0)
    ] = 0.0
    bodies_bytes_max: Annotated[
        int,
        _why(
            "Bytes of all bodies that are being read or checked at one time; past it requests are answered 503. "
            "It bounds the memory of the front door.",
            ge=MIB,
        ),
    ] = 256 * MIB
    answer_s_max: Annotated[
        float, _why("Seconds a client may take to read its answer; then its connection is dropped.", gt=0)
    ] = 30.0
    connections_max: Annotated[
        int,
        _why(
            "Connections that may be open at one time; at the limit the idlest is closed for a new one, and no stream "
            "begins. 0: as many as the limit of open files (ulimit -n) leaves room for.",
            ge=0,
        ),
    ] = 0
    keep_alive_s: Annotated[
        float, _why("Seconds an idle connection is kept; longer than most clients' pools keep theirs.", gt=0)
    ] = 75.0
    stop_s_max: Annotated[
        float,
        _why(
            "Seconds from SIGTERM to the exit at the latest: requests under way are answered within them.",
            gt=0,
        ),
    ] = 10.0
    write_token: Annotated[
        str,
        _why(
            "Token that whoever writes must show, over HTTP and on the stream. Empty: anybody may write. Masked "
            "wherever settings are shown.",
            extra={"secret": True},
        ),
    ] = ""
    allowed_origins: Annotated[
        str,
        _why(
            "Origins of other web pages that may write here, such as https://metrics.example.org, separated by commas. "
            "Pages of all other origins are answered 403, unless * stands here; requests without Origin are not "
            "concerned."
        ),
    ] = ""
    allowed_hosts: Annotated[
        str,
        _why(
            "Names that browsers may reach this node by, separated by commas, besides localhost, the host's name and "
            "any IP address. Checked on a loopback address, and wherever this is set."
        ),
    ] = ""
    trusted_proxies: Annotated[
        str,
        _why(
            "Networks of proxies, such as 10.0.0.0/8, separated by commas, whose X-Forwarded-For or Forwarded header "
            "names the source of a request."
        ),
    ] = ""
    streams_max: Annotated[
        int, _why("WebSocket streams that may be open at one time; another one is told to come back.", ge=0)
    ] = 10_000
    stream_window_frames_max: Annotated[
        int,
        _why(
            "Frames of one stream that may wait for their answer; beyond them nothing more is read from it.",
            ge=1,
            le=64,
        ),
    ] = 32
    stream_window_bytes_max: Annotated[
        int,
        _why(
            "Bytes of one stream's frames, decompressed, that may wait for their answer; a single frame may be larger.",
            ge=64 * KIB,
        ),
    ] = 4 * MIB
    stream_ping_s: Annotated[
        float,
        _why(
            "Seconds of silence after which a stream's peer is pinged; silent for as long again, it is dropped.",
            gt=0,
        ),
    ] = 20.0


class WalSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[wal]: the write-ahead log."""

    wal_bytes_max: Annotated[
        int,
        _why(
            "Bytes the WAL may take on disk; at this size requests are answered 503 until a sink catches up.",
            ge=MIB,
        ),
    ] = 50 * GIB
    free_disk_bytes_min: Annotated[
        int, _why("Bytes that must stay free on the disk; below them requests are answered 503.", ge=0)
    ] = GIB
    segment_bytes_max: Annotated[
        int,
        _why(
            "Size at which a segment is sealed and the next one begun. Space comes back a segment at a time.",
            ge=MIB,
            le=4 * GIB,
        ),
    ] = 32 * MIB
    segment_s_max: Annotated[
        float,
        _why(
            "Age in seconds at which a segment with entries is sealed, so that a quiet node gives space back too.",
            gt=0,
        ),
    ] = 60.0
    keep_confirmed_s: Annotated[
        float,
        _why(
            "Seconds a segment is kept after its last point was accepted, when all sinks have it, for a replay.",
            ge=0,
        ),
    ] = 3600.0
    keep_confirmed_bytes_max: Annotated[
        int,
        _why(
            "Bytes of confirmed segments that are kept at the most; they go first when space is short.", ge=0
        ),
    ] = 256 * MIB
    commit_bytes_max: Annotated[
        int,
        _why(
            "Bytes of lines that one commit takes at the most; what waits beyond them goes into the next.",
            ge=64 * KIB,
        ),
    ] = 8 * MIB
    commit_wait_s_max: Annotated[
        float,
        _why(
            "Seconds an append waits for its commit; then it is answered 503, and the node is not ready.",
            gt=0,
        ),
    ] = 20.0
    append_queue_bytes_max: Annotated[
        int, _why("Bytes of lines that may wait for a commit; past it requests are answered 503.", ge=MIB)
    ] = 64 * MIB
    streams_max: Annotated[
        int,
        _why(
            "Streams whose durable frames are remembered, up to 2 KB each; beyond them the one silent longest is "
            "forgotten.",
            ge=1,
        ),
    ] = 100_000
    stream_keep_s: Annotated[
        float,
        _why(
            "Seconds a stream is remembered after its last frame; who comes back later sends again what it has no "
            "answer for.",
            gt=0,
        ),
    ] = 604_800.0


class FlusherSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[flusher]: delivery to the sinks."""

    batch_points_max: Annotated[
        int, _why("Points in one write to a sink, at the most.", ge=1, le=100_000)
    ] = 1_000
    batch_wait_s_max: Annotated[
        float,
        _why("Seconds the oldest entry waits for its batch to fill; then the batch goes as it is.", ge=0),
    ] = 1.0
    cursor_commit_s: Annotated[
        float,
        _why(
            "Seconds between two durable moves of a cursor, at the least: what may be written twice after a crash.",
            ge=0,
        ),
    ] = 0.5
    retry_s_min: Annotated[
        float, _why("First wait in seconds after a sink was unavailable; it doubles from there.", gt=0)
    ] = 0.25
    retry_s_max: Annotated[
        float, _why("Longest wait in seconds between two tries. Tries never end.", gt=0)
    ] = 30.0
    hold_retry_s: Annotated[
        float,
        _why(
            "Seconds between two tries while a sink is misconfigured (401, 403, 404), or dead letters have no room, "
            "and all is kept.",
            gt=0,
        ),
    ] = 15.0
    dead_letters_bytes_max: Annotated[
        int,
        _why(
            "Bytes of dead letters on disk; at this size delivery holds until some were retried or dropped. It holds "
            "as well where the disk has less than half of wal.free_disk_bytes_min free.",
            ge=64 * MIB,
        ),
    ] = GIB


class InfluxDBSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[influxdb]: the InfluxDB sink, for any server that speaks `POST /api/v2/write`. On when `url` is set."""

    url: Annotated[str, _why("Base address, such as http://localhost:8086. Empty: this sink is off.")] = ""
    token: Annotated[str, _why("API token. Masked wherever settings are shown.", extra={"secret": True})] = ""
    org: Annotated[str, _why("Organisation, by name or id.")] = ""
    bucket: Annotated[str, _why("Bucket that points are written to.")] = ""
    destination: Annotated[
        str,
        _why(
            'Whose organisation and bucket count: "settings" takes those above for every point; "request" takes the '
            "sender's where it named them. With the latter one sender's wrong bucket holds everybody's delivery.",
            pattern="^(settings|request)$",
        ),
    ] = "settings"
    server: Annotated[
        str,
        _why(
            'By whose rules lines are written: "influxdb", "victoriametrics" (which reads some differently), or '
            '"auto", as the answers\' headers show. A point whose reading differs is parked where they show nothing.',
            pattern="^(auto|influxdb|victoriametrics)$",
        ),
    ] = "auto"
    required: Annotated[bool, _why("Whether segments are kept until this sink has confirmed them.")] = True
    in_flight_max: Annotated[
        int,
        _why(
            "Writes under way at once; 1 keeps values of the same series and time in strict order.",
            ge=1,
            le=64,
        ),
    ] = 4
    write_s_max: Annotated[
        float, _why("Seconds a write may take; then its outcome is unknown and it is done again.", gt=0)
    ] = 30.0


class ArchiveSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[archive]: gzip files of line protocol, an hour each, below the data directory."""

    enabled: Annotated[
        str,
        _why(
            '"auto" turns the archive on when no other sink is; "on" and "off" say so.',
            pattern="^(auto|on|off)$",
        ),
    ] = "auto"
    required: Annotated[bool, _why("Whether segments are kept until this sink has confirmed them.")] = True


class LogSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[log]: what is said on standard error."""

    level: Annotated[str, _why("Least severity that is logged.", pattern="^(debug|info|warning|error)$")] = (
        "info"
    )
    format: Annotated[
        str,
        _why(
            '"auto" is readable on a terminal and JSON elsewhere; "text" and "json" say so.',
            pattern="^(auto|text|json)$",
        ),
    ] = "auto"


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings, by section."""

    server: ServerSettings = field(default_factory=ServerSettings)
    wal: WalSettings = field(default_factory=WalSettings)
    flusher: FlusherSettings = field(default_factory=FlusherSettings)
    influxdb: InfluxDBSettings = field(default_factory=InfluxDBSettings)
    archive: ArchiveSettings = field(default_factory=ArchiveSettings)
    log: LogSettings = field(default_factory=LogSettings)
