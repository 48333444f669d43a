"""A real VictoriaMetrics: written to through InfluxDB's line protocol, read back sample by sample.

What it keeps is less than what InfluxDB keeps: milliseconds, and numbers only (a boolean becomes 0 or 1, a
string 0). Its floats are decimal with up to about 15 digits, so tests use values that survive that. A sample
written twice is there twice. It answers 204 to a body with a bad line, which it skips.
"""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType

from tests.rigs.processes import Process, find_program, free_port, http_status, wait_until

# A sample's series as Prometheus writes it, label names in order: cpu_value{client="3",db="fleet"}
Series = str


class VictoriaMetrics:
    """One server on a port of its own. Its data outlive `stop` and `start`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: Process | None = None

    def __enter__(self) -> VictoriaMetrics:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.end()

    @property
    def process(self) -> Process:
        assert self._process is not None, "VictoriaMetrics was not started"
        return self._process

    def start(self) -> None:
        program = find_program("victoria-metrics")
        assert program is not None
        self._process = Process(
            "victoria-metrics",
            [
                program,
                f"-storageDataPath={self.root / 'data'}",
                f"-httpListenAddr=127.0.0.1:{self.port}",
                "-retentionPeriod=100y",
                "-search.disableCache",
                "-search.maxUniqueTimeseries=5000000",
                "-memory.allowedPercent=20",
                "-loggerLevel=WARN",
            ],
            log=self.root / "victoria-metrics.log",
        )
        wait_until(
            lambda: not self.process.running or http_status(f"{self.url}/health") == 200,
            "VictoriaMetrics answers",
        )
        assert self.process.running, self.process.log_tail()

    def stop(self) -> None:
        """A clean stop, which flushes what it holds: VictoriaMetrics itself promises no more."""
        self.process.stop(s_max=30)

    def write(self, lines: bytes) -> None:
        """Writes lines past wal-ingest, for tests of this rig."""
        with urllib.request.urlopen(f"{self.url}/write", data=lines, timeout=10) as answer:
            assert answer.status == 204

    def samples(self, *matches: str) -> dict[Series, list[tuple[int, float]]]:
        """Every sample of the series that `matches` select, as (milliseconds, value) in order of time."""
        with urllib.request.urlopen(f"{self.url}/internal/force_flush", timeout=30) as answer:
            answer.read()
        # Without an end it would stop at the present, and a clock may have been ahead of it.
        span = [("start", "0"), ("end", "9999999999")]
        query = urllib.parse.urlencode([*span, *(("match[]", match) for match in matches)])
        found: dict[Series, list[tuple[int, float]]] = {}
        with urllib.request.urlopen(f"{self.url}/api/v1/export?{query}", timeout=60) as answer:
            for line in answer:
                row = json.loads(line)
                found.setdefault(series_name(row["metric"]), []).extend(
                    zip(row["timestamps"], row["values"], strict=True)
                )
        for samples in found.values():
            samples.sort()
        return found

    def values(self, *matches: str) -> dict[Series, dict[int, float]]:
        """As `samples`, by milliseconds. A sample that was written twice counts once; two values for one
        millisecond are an error."""
        found: dict[Series, dict[int, float]] = {}
        for series, samples in self.samples(*matches).items():
            by_ms = found.setdefault(series, {})
            for ms, value in samples:
                assert by_ms.setdefault(ms, value) == value, f"{series} has two values at {ms}"
        return found

    def count(self, *matches: str) -> int:
        """How many different samples (series and millisecond) there are."""
        return sum(len(by_ms) for by_ms in self.values(*matches).values())


def series_name(labels: dict[str, str]) -> Series:
    """`name{a="1",b="2"}`, label names in order, without braces when there are no labels."""
    rest = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()) if key != "__name__")
    return labels["__name__"] + (f"{{{rest}}}" if rest else "")
