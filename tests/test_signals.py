"""Signals and the standard error of a running node: what ends it, what does not, and what must never hold it up."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.rigs.processes import Process, free_port, http_status, wait_until
from tests.rigs.service import COMMAND, Service, environment
from wal_ingest.log_stream import LogStream
from wal_ingest.signals import IGNORED_SIGNALS

POINT = b"m f=1 1\n"
PLAIN = {"Content-Type": "text/plain"}


@pytest.mark.parametrize("number", IGNORED_SIGNALS, ids=lambda number: number.name)
def test_a_signal_for_reload_is_logged_and_ends_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with Service(tmp_path / "data", logs=tmp_path) as service:
        os.kill(service.process.pid, number)
        log = tmp_path / "serve-1.err"
        wait_until(lambda: "signal ignored" in log.read_text(), "the signal is logged")
        assert number.name in log.read_text()
        assert service.post("/metrics", POINT, PLAIN) == 202
        assert service.stop() == 0


def test_a_reload_signal_during_the_start_ends_nothing(tmp_path: Path) -> None:
    """As early as the command can: while Python still imports."""
    script = (
        "import os, signal, sys\n"
        "from wal_ingest.cli import serve\n"
        "import wal_ingest.cli.options as options\n"
        "def load(*_a, **_k):\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    print('alive', flush=True)\n"
        "    sys.exit(0)\n"
        "serve.load_config = load\n"
        "serve.serve()\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=30
    )
    assert (ran.returncode, ran.stdout) == (0, "alive\n"), ran.stderr


def test_the_agent_ignores_a_signal_for_reload_too(tmp_path: Path) -> None:
    log, out = tmp_path / "agent.err", tmp_path / "agent.out"
    agent = Process(
        "agent",
        [COMMAND, "agent", "--to", "ws://127.0.0.1:9", "--spool-dir", tmp_path / "spool"],
        log=log,
        stdout=out,
        env=environment({}),
    )
    try:
        wait_until(lambda: "agent measures" in out.read_text(), "the ready line is printed")
        agent.signal(signal.SIGHUP)
        wait_until(lambda: "signal ignored" in log.read_text(), "the signal is logged")
        assert agent.running
        assert agent.stop() == 0
    finally:
        agent.end()


def test_a_node_whose_standard_error_nobody_reads_answers_and_stops(tmp_path: Path) -> None:
    read, write = os.pipe()
    out = tmp_path / "out"
    with out.open("wb") as stdout:
        node = subprocess.Popen(
            [COMMAND, "serve", "--bind", "127.0.0.1:0", "--data-dir", tmp_path / "data"],
            stdout=stdout,
            stderr=write,
            env=environment({"server.stop_s_max": 5}),
        )
    os.close(write)
    try:
        wait_until(lambda: out.read_text().endswith("\n"), "the ready line is printed")
        url = out.read_text().split(" on ")[1].split(",")[0]
        os.set_blocking(read, True)
        # More than a pipe holds, one ignored signal a line: those that arrive together may share one.
        for _ in range(700):
            os.kill(node.pid, signal.SIGHUP)
            assert http_status(f"{url}/healthz") == 200
        os.kill(node.pid, signal.SIGTERM)
        assert node.wait(10) == 0
    finally:
        node.kill()
        node.wait()
        os.close(read)


def test_a_loop_that_is_blocked_does_not_keep_a_process_from_ending() -> None:
    script = (
        "import os, signal, time, trio\n"
        "from wal_ingest.signals import Watchdog, stop_on_signals\n"
        "async def main():\n"
        "    with stop_on_signals(print, Watchdog(0.2, message='too slow')):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(60)\n"
        "trio.run(main)\n"
    )
    began_s = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=30
    )
    assert ran.returncode == 1
    assert "too slow" in ran.stdout + ran.stderr
    assert time.monotonic() - began_s < 30


def test_log_lines_beyond_the_limit_are_dropped_counted_and_reported() -> None:
    read, write = os.pipe()
    stream = LogStream(
        lambda data: os.write(write, data), dropped_line=lambda n: f"dropped {n}\n", lines_max=3
    )
    # The writer is stuck in the first line, which is larger than the pipe.
    stream.write("x" * 200_000)
    wait_until(lambda: stream._queue.qsize() == 0, "the first line is being written", every_s=0.001)
    for number in range(10):
        stream.write(f"line {number}\n")
    assert stream.dropped == 7
    assert not stream.drain(0.01)
    seen = b""
    while b"line 2\n" not in seen:
        seen += os.read(read, 65_536)
    # Before the first line where the writer had not looked yet when the others came.
    assert seen.count(b"dropped 7\n") == 1
    assert seen.endswith(b"line 0\nline 1\nline 2\n")
    assert stream.drain(10)
    os.close(read)
    os.close(write)


def test_log_lines_that_cannot_be_written_raise_nothing() -> None:
    def fail(_data: bytes) -> None:
        raise OSError(5, "Input/output error")

    stream = LogStream(fail, dropped_line=str)
    stream.write("a line\n")
    assert stream.drain(10)
    assert stream.dropped == 1
    assert stream.writable()


def test_a_sender_that_comes_during_the_start_waits_and_is_not_refused(tmp_path: Path) -> None:
    """The socket listens before the log is recovered: here recovery waits for the directory's lock."""
    port = free_port()
    (tmp_path / "data").mkdir()
    out = tmp_path / "out"
    with (tmp_path / "data/LOCK").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = Process(
            "node",
            [COMMAND, "serve", "--bind", f"127.0.0.1:{port}", "--data-dir", tmp_path / "data"],
            log=tmp_path / "err",
            stdout=out,
            env=environment({}),
        )
        try:
            wait_until(lambda: _connects(port), "the port listens", every_s=0.005)
            assert out.read_text() == ""
        finally:
            process.end()


def test_a_sender_that_comes_during_the_start_is_answered_after_recovery(tmp_path: Path) -> None:
    """Recovery waits for standard input here, so that the request is there before the log is."""
    port, data_dir = free_port(), tmp_path / "data"
    may_go_on, go_on = os.pipe()
    script = (
        "import sys\n"
        "import wal_ingest.service as service\n"
        "from wal_ingest.cli import main\n"
        "class Slow(service.Store):\n"
        "    def __init__(self, *arguments, **options):\n"
        "        sys.stdin.readline()\n"
        "        super().__init__(*arguments, **options)\n"
        "service.Store = Slow\n"
        "main()\n"
    )
    out = tmp_path / "out"
    with out.open("wb") as stdout:
        node = subprocess.Popen(
            [sys.executable, "-c", script, "serve", "--bind", f"127.0.0.1:{port}", "--data-dir", data_dir],
            stdin=may_go_on,
            stdout=stdout,
            env=environment({}),
        )
    os.close(may_go_on)
    try:
        wait_until(lambda: _connects(port), "the port listens", every_s=0.005)
        with socket.create_connection(("127.0.0.1", port), timeout=30) as sender:
            head = f"POST /write HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(POINT)}\r\n\r\n"
            sender.sendall(head.encode() + POINT)
            assert out.read_text() == ""
            os.write(go_on, b"\n")
            assert sender.recv(1000).startswith(b"HTTP/1.1 204")
        node.terminate()
        assert node.wait(15) == 0
    finally:
        node.kill()
        node.wait()
        os.close(go_on)


def _connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
