"""Fixtures over the rigs, and the rule that in CI nothing that `needs` something is skipped."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from tests.rigs import forked, processes
from tests.rigs.influxdb import InfluxDB
from tests.rigs.needs import NEEDS, SKIP_PREFIX, in_ci, require
from tests.rigs.victoria_metrics import VictoriaMetrics

# A third of a minute and more each, beside other work on two cores.
LONGEST_FILES = (
    "tests/faults/test_faults.py",
    "tests/page/test_page.py",
    "tests/test_runbook.py",
    "tests/http/stream/test_hostile_process.py",
    "tests/cli/send/test_wrong_address.py",
    "tests/http/test_crowd_process.py",
    "tests/model/test_model.py",
    "tests/wal/test_damage.py",
    "tests/http/test_hostile.py",
    "tests/http/stream/test_hostile_frames.py",
    "tests/cli/test_wal_taking.py",
    "tests/proofs/test_power_cut.py",
    "tests/proofs/test_points_come_back.py",
    "tests/http/test_every_door.py",
    "tests/proofs/test_stream_javascript.py",
    "tests/proofs/test_replay.py",
    "tests/points/test_good_lines.py",
    "tests/proofs/test_kill.py",
    "tests/proofs/test_stream_kill.py",
    "tests/test_commands_page.py",
    "tests/test_tutorial.py",
    "tests/proofs/test_limits.py",
    "tests/points/test_fast_and_exact_agree.py",
    "tests/ops/test_alerts.py",
    "tests/page/test_live_page.py",
    "tests/proofs/test_outage.py",
)


@pytest.fixture(scope="session")
def victoria_metrics(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VictoriaMetrics]:
    """A real VictoriaMetrics for the whole run: tests keep apart by names of their own."""
    require("victoria-metrics")
    with VictoriaMetrics(tmp_path_factory.mktemp("victoria-metrics")) as server:
        yield server


@pytest.fixture(scope="session")
def influxdb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InfluxDB]:
    """A real InfluxDB 1.6 that also answers `/api/v2/write`: tests keep apart by `fresh_database()`."""
    require("influxdb")
    with InfluxDB(tmp_path_factory.mktemp("influxdb")) as server:
        yield server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first: one of them at the end would keep a single worker busy, and the others idle."""
    order = {name: place for place, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))


def pytest_unconfigure() -> None:
    forked.stop()


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        for need in mark.args:
            if need not in NEEDS:
                pytest.fail(f"{need!r} is not in the table of tests/rigs/needs.py: {', '.join(NEEDS)}")
            require(need)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and in_ci() and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if reason.startswith(SKIP_PREFIX):
            report.outcome = "failed"
            report.longrepr = f"{reason}; with CI=true that is a failure, see tests/rigs/needs.py"
    if report.failed:
        # The temporary folders do not outlive a CI machine, so what the servers said goes into the report.
        for process in processes.STARTED[-6:]:
            state = "running" if process.running else f"exit code {process.exit_code}"
            report.sections.append((f"log of {process.name} ({state})", process.log_tail()))
    return report
