"""Settings: file < environment < command line, nothing unknown, nothing secret shown."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from wal_ingest.addresses import without_password
from wal_ingest.config import FIELDS, FROM_DEFAULT, MASK, load, sample
from wal_ingest.errors import ConfigError
from wal_ingest.settings import Settings


def write(directory: Path, text: str) -> Path:
    """A settings file."""
    path = directory / "wal-ingest.toml"
    path.write_text(text)
    return path


def test_without_anything_the_defaults_hold() -> None:
    config = load(environ={"PATH": "/bin"})
    assert config.settings == Settings()
    assert set(config.origins.values()) == {FROM_DEFAULT}


def test_a_flag_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, '[server]\nbind = "1.1.1.1:1"\ndata_dir = "/file"\nbody_s_max = 7\n')
    config = load(
        file,
        environ={"WAL_INGEST_SERVER__BIND": "2.2.2.2:2", "WAL_INGEST_SERVER__DATA_DIR": "/env"},
        flags={"server.bind": "3.3.3.3:3", "server.data_dir": None},
    )
    server = config.settings.server
    assert (server.bind, server.data_dir, server.body_s_max) == ("3.3.3.3:3", "/env", 7.0)
    assert config.origins["server.bind"] == "command line"
    assert config.origins["server.data_dir"] == "WAL_INGEST_SERVER__DATA_DIR"
    assert config.origins["server.body_s_max"] == str(file)
    assert config.origins["server.keep_alive_s"] == FROM_DEFAULT


def test_the_names_of_influxdbs_own_tools_are_understood_and_ours_win() -> None:
    environ = {
        "INFLUXDB_URL": "http://db:8086",
        "INFLUXDB_TOKEN": "secret",
        "INFLUXDB_ORG": "acme",
        "INFLUXDB_BUCKET": "metrics",
    }
    influxdb = load(environ=environ).settings.influxdb
    assert (influxdb.url, influxdb.token, influxdb.org, influxdb.bucket) == tuple(environ.values())
    ours = load(environ={**environ, "WAL_INGEST_INFLUXDB__BUCKET": "other"}).settings.influxdb
    assert ours.bucket == "other"


def test_the_file_can_be_named_in_the_environment(tmp_path: Path) -> None:
    file = write(tmp_path, '[log]\nlevel = "debug"\n')
    assert load(environ={"WAL_INGEST_CONFIG": str(file)}).settings.log.level == "debug"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[servr]\n", r"unknown section \[servr\]", "did you mean server?"),
        (
            "[wal]\nsegment_byte_max = 1\n",
            "unknown setting wal.segment_byte_max",
            "did you mean wal.segment_bytes_max?",
        ),
        ("[wal]\nqqqqqqqq = 1\n", "unknown setting wal.qqqqqqqq", "wal-ingest config"),
        ("wal = 3\n", r"\[wal\] must be a table", "[wal]"),
        ("[wal\n", "line 1", "config sample"),
        ('[server]\ndata_dir = ""\n', "server.data_dir = ''.*it must not be empty", "Directory of the WAL"),
        (
            '[wal]\nsegment_bytes_max = "9000000"\n',
            r"wal.segment_bytes_max = '9000000'.*a string where an integer is needed",
            "Size at which",
        ),
        ("[wal]\nsegment_bytes_max = 5\n", r"it must be at least 1048576$", "Size at which"),
        (
            '[log]\nlevel = "loud"\n',
            "log.level = 'loud'.*it must be debug, info, warning or error$",
            "severity",
        ),
        ('[influxdb]\nurl = "db:8086"\nbucket = "b"\n', "must begin with http", "http://localhost:8086"),
        ('[influxdb]\nurl = "http://db:8086"\n', "influxdb.bucket is not", "INFLUXDB_BUCKET"),
        ('[archive]\nenabled = "off"\n', "no sink is on", "influxdb.url"),
        ("[flusher]\nretry_s_min = 60.0\n", "larger than flusher.retry_s_max", "shortest"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_mend(
    tmp_path: Path, text: str, message: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(write(tmp_path, text), environ={})
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[server]\nbind = "8400"\n', "'8400' is not HOST:PORT"),
        ('[server]\nbind = "127.0.0.1:99999"\n', "is not HOST:PORT"),
        ('[influxdb]\nurl = "http://me:pw@db:8086"\nbucket = "b"\n', "holds a user and password"),
        ('[influxdb]\nurl = "http://"\nbucket = "b"\n', "names no host"),
        ('[influxdb]\nurl = "http://db:99999"\nbucket = "b"\n', "out of range"),
        ('[influxdb]\nurl = "http://db"\nbucket = "b"\ntoken = "t\\u00e9"\n', "no HTTP header may carry"),
    ],
)
def test_what_serve_would_refuse_is_refused_by_the_check(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(write(tmp_path, text), environ={})
    assert "pw" not in str(caught.value)


def test_all_mistakes_are_reported_at_once_with_their_lines(tmp_path: Path) -> None:
    text = '[server]\nbind = "8400"\n\n[wal]\nsegmnt = 1\nsegment_bytes_max = "many"\n[loog]\nx = 1\n'
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(file, environ={"WAL_INGEST_FLUSHER__RETRY_S_MIN": "soon", "WAL_INGEST_NONE": "1"})
    lines = str(caught.value).splitlines()
    assert lines[0] == "6 mistakes in the settings:"
    assert f"{file}, line 5: unknown setting wal.segmnt" in str(caught.value)
    assert f"wal.segment_bytes_max = 'many' ({file}, line 6)" in str(caught.value)
    assert f"{file}, line 7: unknown section [loog] (try: did you mean log?)" in str(caught.value)
    assert "flusher.retry_s_min = 'soon' (WAL_INGEST_FLUSHER__RETRY_S_MIN)" in str(caught.value)
    assert "unknown setting WAL_INGEST_NONE" in str(caught.value)
    assert "'8400' is not HOST:PORT" in str(caught.value)


def test_sizes_and_durations_take_units(tmp_path: Path) -> None:
    text = '[wal]\nwal_bytes_max = "50GiB"\nkeep_confirmed_s = "1h30m"\n[flusher]\nretry_s_min = "500ms"\n'
    settings = load(
        write(tmp_path, text),
        environ={"WAL_INGEST_SERVER__BODY_BYTES_MAX": "16 MiB"},
        flags={"server.body_s_max": "1m"},
    ).settings
    assert settings.wal.wal_bytes_max == 50 << 30
    assert settings.wal.keep_confirmed_s == 5400.0
    assert settings.flusher.retry_s_min == 0.5
    assert settings.server.body_bytes_max == 16 << 20
    assert settings.server.body_s_max == 60.0


@pytest.mark.parametrize("text", ["1 parsec", "GiB", "-1GiB", "1h 2x", "1KB2KB", ""])
def test_what_is_no_size_or_duration_is_refused(tmp_path: Path, text: str) -> None:
    for name in ("wal_bytes_max", "keep_confirmed_s"):
        with pytest.raises(ConfigError, match=f"wal.{name}"):
            load(write(tmp_path, f'[wal]\n{name} = "{text}"\n'), environ={})


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = write(tmp_path, '\ufeff[log]\nlevel = "debug"\n')
    assert load(file, environ={}).settings.log.level == "debug"


def test_a_password_in_an_address_is_masked_wherever_it_is_shown() -> None:
    assert without_password("to http://me:pw@db:8086/x and https://u:p2@h") == (
        "to http://me:********@db:8086/x and https://u:********@h"
    )
    assert without_password("http://db:8086/a:b@c http://me@db") == "http://db:8086/a:b@c http://me@db"


def test_an_unknown_variable_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="WAL_INGEST_WAL__SEGMENT_BYTE_MAX") as caught:
        load(environ={"WAL_INGEST_WAL__SEGMENT_BYTE_MAX": "1"})
    assert "WAL_INGEST_WAL__SEGMENT_BYTES_MAX" in caught.value.hint


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "nowhere.toml", environ={})


def test_the_sample_is_a_correct_file_that_says_every_default(tmp_path: Path) -> None:
    config = load(write(tmp_path, sample()), environ={})
    assert config.settings == Settings()
    assert FROM_DEFAULT not in config.origins.values()


def test_every_number_says_its_unit_and_every_setting_its_reason() -> None:
    units = {"max", "min", "s"}
    for field in FIELDS.values():
        assert field.why.endswith((".", '."')), field.name
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            words = set(field.key.split("_"))
            assert words & units, field.name
            assert words & {"bytes", "s", "points", "depth", "flight", "streams", "frames", "connections"}, (
                field.name
            )


def test_a_token_is_never_shown() -> None:
    environ = {"INFLUXDB_TOKEN": "hush-hush"}
    rows = list(load(environ=environ).rows())
    assert "hush-hush" not in repr(rows)
    assert next(value for field, value, _ in rows if field.name == "influxdb.token") == MASK
    with pytest.raises(ConfigError) as caught:
        load(environ={}, flags={"influxdb.token": 5})
    assert "5" not in str(caught.value).replace("`", "")


def test_the_sample_file_in_ops_is_the_one_that_the_program_prints() -> None:
    shipped = Path(__file__).parent.parent / "ops" / "wal-ingest.toml"
    assert shipped.read_text() == sample()
    assert tomllib.loads(shipped.read_text())
