"""Someone on call: types a section of the runbook, block by block, on a machine with a node in real trouble.

The page speaks of a machine with systemd, where the node has its data in /var/lib/wal-ingest. Here the node is the
rig's `Service` in a temporary folder, and the few commands of systemd are done by this rig; everything else is
typed as it stands. What is compared are the words and the counts; times, ages, sizes and rates are made alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from tests.rigs.pages import Reader, commands, masked
from tests.rigs.processes import wait_until
from tests.rigs.service import Service, environment

NODE = "http://127.0.0.1:8400"
LOOKS = (
    "wal-ingest sink status",
    "wal-ingest dead-letters list",
    "wal-ingest stream list",
    f"curl -s {NODE}/readyz",
    f"curl -s {NODE}/status.json",
    f"curl -s {NODE}/metrics |",
)
_SYSTEMD = "sudo systemctl "
_JOURNAL = "sudo journalctl -u wal-ingest -o cat -n "
_STATES = "idle|delivering|retrying|holding|failed|paused|absent"
TEXT = {"Content-Type": "text/plain"}


def sections(page: str) -> dict[str, str]:
    """The second-level sections of a page, by the anchors that links to them end in."""
    parts = re.split(r"^## (.+)\n", page, flags=re.MULTILINE)[1:]
    return {
        re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-"): text
        for heading, text in zip(parts[::2], parts[1::2], strict=True)
    }


def blocks(section: str) -> list[list[tuple[str, str]]]:
    """The commands of each console block, with the output that the page shows."""
    found = re.findall(r"```console\n.*?```", section, re.DOTALL)
    return [list(commands(block)) for block in found]


def alike(output: str) -> str:
    """As `masked`, and also ages, sizes, rates, fractions, large figures, how often was tried, widths of columns."""
    output = masked(output)
    output = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?[+-]\d\d:\d\d", "T", output)
    output = re.sub(r"\b(?:[\d.]+|S) (?:[KMGT]i|[kMGT])?B\b", "S", output)
    output = re.sub(r"\b[\d,.]+ points/s", "R points/s", output)
    output = re.sub(r"\b[\d.]+ (s|min|h|d)\b", "A", output)
    output = re.sub(r'("\w*(?:per_\w+|_ms)": ?)[\d.]+', r"\1F", output)
    output = re.sub(r'"request_id": "\w+"', '"request_id": "R"', output)
    output = re.sub(r"(Max open files) +\d+ +\d+", r"\1", output)
    output = re.sub(rf"^(\S+ +(?:{_STATES}) .*?) +\d+ +\d+$", r"\1", output, flags=re.MULTILINE)
    output = re.sub(r"\b\d+\.\d+(e[+-]?\d+)?\b", "F", output)
    output = re.sub(r"\b\d{7,}\b(?!\.lmdb)", "N", output)
    output = output.replace("T to T", "T")
    return re.sub(r" {2,}", "  ", output)


class OnCall:
    """Goes through one section; on leaving, every block must have been typed.

    `sink_port` is where the database listens that the page has at port 8086.
    """

    def __init__(
        self, section: str, folder: Path, *, settings: Mapping[str, object], sink_port: int = 0
    ) -> None:
        for name in ("shell", "etc", "spare"):
            (folder / name).mkdir()
        self.folder = folder
        self.service = Service(folder / "data", logs=folder, settings=settings)
        self.reader = Reader(folder / "shell", errors_too=True, mask=alike, looks=LOOKS)
        self.reader.moved = {
            "/var/lib/wal-ingest": str(self.service.data_dir),
            "/etc/wal-ingest": str(folder / "etc"),
            "/mnt/spare": str(folder / "spare"),
        }
        if sink_port:
            self.reader.moved["8086"] = str(sink_port)
        self._left = blocks(section)

    def __enter__(self) -> OnCall:
        self.configure({})
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.service.__exit__(kind, exc, trace)
        self.reader.end()
        assert kind is not None or not self._left, f"not rehearsed: {self._left}"

    def configure(self, settings: Mapping[str, object]) -> None:
        """Changes settings, for the node's next start and for the commands."""
        self.service.settings.update(settings)
        data_dir = {"server.data_dir": self.service.data_dir}
        kept = {name: self.reader.env[name] for name in ("PATH", "COLUMNS")}
        self.reader.env = environment({**self.service.settings, **data_dir}) | kept

    def start(self) -> None:
        self.service.start()
        self.reader.moved["8400"] = str(self.service.port)

    def stop(self) -> None:
        assert self.service.stop() == 0

    def post(self, lines: str, *, settled: bool = False) -> None:
        """Points that the node must take; `settled` waits until they are delivered."""
        self.service.post("/metrics", lines.encode(), TEXT)
        if settled:
            self.settle()

    def settle(self) -> None:
        """Waits until nothing waits for a required sink."""

        def settled() -> bool:
            sinks = json.loads(self.service.get("/status.json"))["sinks"]
            return all(sink["waiting_points"] == 0 for sink in sinks if sink["required"])

        wait_until(settled, "nothing waits for a required sink")

    def type_block(self) -> None:
        """Types the next block of the section."""
        for command, shown in self._left.pop(0):
            if command.startswith(_SYSTEMD):
                assert shown.strip() == "", "systemctl says nothing when all is well"
                self._systemctl(command.removeprefix(_SYSTEMD))
            elif command.startswith(_JOURNAL):
                self._compare_log(int(command.removeprefix(_JOURNAL)), shown)
            elif command.startswith("wal-ingest serve"):
                self.reader.compare(command, shown)  # one that must end by itself
            else:
                self.reader.type(command, shown)

    def _compare_log(self, lines: int, shown: str) -> None:
        """Waits until the last lines of the node's log are those that the page shows."""
        wait_until(
            lambda: alike(self.service.process.log_tail(lines=lines)) == alike(self.reader.here(shown)),
            f"the log ends as the page shows: {alike(shown)}",
            s_max=15,
        )

    def _systemctl(self, words: str) -> None:
        does: dict[str, Callable[[], None]] = {
            "start wal-ingest": self.start,
            "stop wal-ingest": self.stop,
        }
        if words == "restart wal-ingest":
            self.stop()
            self.start()
        else:
            does[words]()


def lines_of(count: int, *, measurement: str = "cpu", first_ns: int) -> str:
    """So many different points, a millisecond apart, which is as fine as every database keeps."""
    return "".join(
        f"{measurement},host=web-{number % 17} user=0.{number % 9 + 1} {first_ns + number * 1_000_000}\n"
        for number in range(count)
    )
