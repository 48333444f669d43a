"""A real InfluxDB 1.6 behind an nginx that turns `/api/v2/write` into `/write`.

Debian's InfluxDB is the old one; nginx gives it the newer path, with the bucket as its database, so that
the InfluxDB sink can be proven against a server that keeps nanoseconds, strings, booleans and integers, and
that refuses points in its own words.
"""

from __future__ import annotations

import json
import os
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.rigs.processes import Process, find_program, free_port, http_status, wait_until

_INFLUXD_CONF = """\
reporting-disabled = true
bind-address = "127.0.0.1:{rpc_port}"
[meta]
  dir = "{root}/meta"
[data]
  dir = "{root}/data"
  wal-dir = "{root}/wal"
  query-log-enabled = false
  max-values-per-tag = 0
[monitor]
  store-enabled = false
[http]
  bind-address = "127.0.0.1:{port}"
  log-enabled = false
[logging]
  level = "warn"
"""

_NGINX_CONF = """\
daemon off;
master_process off;
pid {root}/nginx.pid;
error_log {root}/nginx.log warn;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_max_body_size {body_bytes_max};
  client_body_buffer_size 1m;
  client_body_temp_path {root}/nginx-body;
  proxy_temp_path {root}/nginx-proxy;
  fastcgi_temp_path {root}/nginx-fastcgi;
  uwsgi_temp_path {root}/nginx-uwsgi;
  scgi_temp_path {root}/nginx-scgi;
  server {{
    listen 127.0.0.1:{front_port};
    location = /api/v2/write {{
      rewrite ^ /write?db=$arg_bucket&precision=$arg_precision? break;
      proxy_pass http://127.0.0.1:{port};
    }}
    location / {{ proxy_pass http://127.0.0.1:{port}; }}
  }}
}}
"""


class InfluxDB:
    """One server with its nginx. A sink is pointed at `url`, which is nginx; data outlive a restart."""

    def __init__(self, root: Path, *, body_bytes_max: int = 32 * 1024 * 1024) -> None:
        self.root = root
        self._port = free_port()
        self._front_port = free_port()
        self.url = f"http://127.0.0.1:{self._front_port}"
        self._direct_url = f"http://127.0.0.1:{self._port}"
        self._databases = 0
        self._influxd: Process | None = None
        self._nginx: Process | None = None
        names = {"root": root, "port": self._port, "front_port": self._front_port, "rpc_port": free_port()}
        (root / "influxdb.conf").write_text(_INFLUXD_CONF.format(**names))
        (root / "nginx.conf").write_text(_NGINX_CONF.format(**names, body_bytes_max=body_bytes_max))

    def __enter__(self) -> InfluxDB:
        self.start()
        self.open_front()
        return self

    def open_front(self) -> None:
        """Starts nginx, which `url` is."""
        nginx = find_program("nginx")
        assert nginx is not None
        log = self.root / "nginx.log"
        self._nginx = Process(
            "nginx", [nginx, "-p", self.root, "-c", self.root / "nginx.conf", "-e", log], log=log
        )
        wait_until(lambda: http_status(f"{self.url}/ping") == 204, "InfluxDB answers through nginx")

    def close_front(self) -> None:
        """Ends nginx: connections to `url` are refused, as when the whole machine is away."""
        assert self._nginx is not None
        self._nginx.stop()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in (self._nginx, self._influxd):
            if process is not None:
                process.end()

    @property
    def influxd(self) -> Process:
        assert self._influxd is not None, "InfluxDB was not started"
        return self._influxd

    def start(self) -> None:
        """Starts influxd; while it is stopped nginx answers 502."""
        program = find_program("influxd")
        assert program is not None
        self._influxd = Process(
            "influxd",
            [program, "run", "-config", self.root / "influxdb.conf"],
            log=self.root / "influxd.log",
            env={"PATH": os.environ.get("PATH", ""), "HOME": str(self.root)},
        )
        wait_until(lambda: http_status(f"{self._direct_url}/ping") == 204, "InfluxDB answers")

    def stop(self) -> None:
        self.influxd.stop(s_max=30)

    def query(self, statement: str, *, database: str = "") -> list[dict[str, Any]]:
        """The series of a statement's result; times are integers in nanoseconds."""
        form = urllib.parse.urlencode({"q": statement, "db": database, "epoch": "ns"}).encode()
        with urllib.request.urlopen(f"{self._direct_url}/query", data=form, timeout=60) as answer:
            result = json.loads(answer.read())["results"][0]
        assert "error" not in result, result["error"]
        series: list[dict[str, Any]] = result.get("series", [])
        return series

    def fresh_database(self) -> str:
        """A new, empty database (a bucket, in the newer words) that no other test uses."""
        self._databases += 1
        name = f"test{self._databases}"
        self.query(f"CREATE DATABASE {name}")
        return name

    def rows(self, database: str, statement: str) -> list[dict[str, Any]]:
        """The rows of a select as dictionaries, `time` in nanoseconds, columns without a value left out.

        InfluxDB answers integers and floats alike as JSON numbers; ask `field_types` what they are.
        """
        return [
            {column: value for column, value in zip(series["columns"], row, strict=True) if value is not None}
            for series in self.query(statement, database=database)
            for row in series["values"]
        ]

    def field_types(self, database: str, measurement: str) -> dict[str, str]:
        """Of each field: float, integer, string or boolean."""
        return {
            key: kind
            for series in self.query(f'SHOW FIELD KEYS FROM "{measurement}"', database=database)
            for key, kind in series["values"]
        }
