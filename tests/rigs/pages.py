"""Pages whose commands are run: someone types what a page says, and what comes back is compared with the page."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.rigs import forked
from tests.rigs.processes import Process, free_port, wait_until

# Commands that start a server: run in the background, and known by their first words.
SERVERS = ("make run", "wal-ingest serve", "victoria-metrics", "INFLUXDB_URL=")
# Commands that only look may be run until they show what the page shows: delivery takes a moment.
LOOKS = ("zcat", "wal-ingest wal status", "wal-ingest wal ls", "curl -s http://127.0.0.1:8428/")


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Every command of the console blocks, in order, with the output that the page shows.

    A line that begins with "> " goes on with the command, as a shell's second prompt says.
    """
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for command in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, output = command.partition("\n")
            while output.startswith("> "):
                more, _, output = output.partition("\n")
                line += "\n" + more.removeprefix("> ")
            yield line, output


def masked(output: str) -> str:
    """What differs from run to run, made alike: times of day, process ids, sizes on disk, the edges of tables."""
    output = output.replace("\r\n", "\n")
    output = re.sub(r"^date: .*$", "date: D", output, flags=re.MULTILINE)
    output = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "T", output)
    output = re.sub(r"process \d+", "process P", output)
    output = re.sub(r"\d+\.\d KiB", "S KiB", output)
    return "\n".join(line.rstrip() for line in output.strip().splitlines())


class Reader:
    """Someone who types what a page says, in an empty folder, with the page's ports moved to free ones.

    With `errors_too` the page shows what a terminal shows; else standard output only. `mask` makes alike what differs
    from run to run, `looks` are further commands that only look. `end` ends the servers. `moved` and `env` may be
    changed between two commands: what the page says and what that is here, longer texts first; the environment.
    """

    def __init__(
        self,
        folder: Path,
        *,
        errors_too: bool = False,
        mask: Callable[[str], str] = masked,
        looks: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.processes: list[Process] = []
        self._errors_too = errors_too
        self._mask = mask
        self._looks = LOOKS + looks
        self.moved = {port: str(free_port()) for port in ("8400", "8401", "8428")}
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("WAL_INGEST_", "INFLUXDB_"))
        }
        self.env = {**kept, "PATH": forked.search_path(), "COLUMNS": "120"}
        self.env.update(env or {})

    def type(self, command: str, shown: str) -> None:
        """Runs one command and compares what it says with what the page shows."""
        command_here, shown_here = self.here(command), self._mask(self.here(shown))
        if command.startswith(SERVERS):
            self._start(
                command_here.replace("make run", f"wal-ingest serve --bind 127.0.0.1:{self.moved['8400']}"),
                shown_here,
            )
        elif command.startswith(self._looks):
            wait_until(
                lambda: self._run(command_here) == shown_here,
                f"`{command}` shows what the page shows",
                s_max=15,
            )
        else:
            self.compare(command, shown)

    def compare(self, command: str, shown: str) -> None:
        """Runs a command to its end, whatever it is, and compares what it says with what the page shows."""
        said, expected = self._run(self.here(command)), self._mask(self.here(shown))
        assert said == expected, f"{command}\nsays\n{said}\nand the page shows\n{expected}"

    def end(self) -> None:
        """Ends every server that was started."""
        for process in self.processes:
            process.end()

    def here(self, text: str) -> str:
        """A text of the page, with its ports and places moved."""
        for there, here in self.moved.items():
            text = text.replace(there, here)
        return text

    def _run(self, command: str) -> str:
        ran = subprocess.run(
            ["bash", "-c", command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if self._errors_too else subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
            timeout=20,
            cwd=self.folder,
            env=self.env,
        )
        return self._mask(ran.stdout)

    def _start(self, command: str, shown: str) -> None:
        out = self.folder / f"server-{len(self.processes)}.out"
        process = Process(
            command.split()[0],
            ["bash", "-c", f"exec env {command}"],
            log=self.folder / f"server-{len(self.processes)}.err",
            stdout=out,
            env=self.env,
            cwd=self.folder,
        )
        self.processes.append(process)
        if shown:
            wait_until(
                lambda: self._mask(out.read_text()) == shown, f"`{command}` prints {shown!r}", s_max=20
            )
